using System;
using System.Runtime.InteropServices;

namespace Svdq
{
    /// <summary>
    /// Something of the library that is to be released: with Dispose, or by the garbage collector.
    /// Handles may be released in any order and from any thread; what was made from one keeps what it
    /// needs of it. A handle that is in use by a call is released when that call returns.
    /// </summary>
    public abstract unsafe class Handle : SafeHandle
    {
        internal Handle() : base(IntPtr.Zero, true) { }

        /// <summary>Whether there is nothing to release.</summary>
        public override bool IsInvalid => handle == IntPtr.Zero;

        internal void Set(void* pointer) => SetHandle((IntPtr)pointer);

        /// <summary>Keeps the handle from being released while a call uses it.</summary>
        internal Use Use() => new Use(this);
    }

    internal unsafe struct Use : IDisposable
    {
        readonly Handle handle;

        internal Use(Handle handle)
        {
            if (handle == null) throw new ArgumentNullException(nameof(handle));
            var added = false;
            handle.DangerousAddRef(ref added);
            this.handle = handle;
        }

        internal void* Pointer => (void*)handle.DangerousGetHandle();

        public void Dispose() => handle.DangerousRelease();
    }
}
