using System;
using System.Collections.Generic;
using System.Runtime.InteropServices;

namespace Svdq
{
    /// <summary>
    /// What a native call needs until it returns: strings, arrays and pinned objects in memory that
    /// stays where it is, and handles that must not be released.
    /// </summary>
    internal sealed unsafe class Call : IDisposable
    {
        readonly List<IntPtr> memory = new List<IntPtr>();
        readonly List<GCHandle> objects = new List<GCHandle>();
        readonly List<Handle> handles = new List<Handle>();

        /// <summary>Zeroed memory.</summary>
        internal void* Zeros(int bytes)
        {
            var pointer = (byte*)Marshal.AllocHGlobal(bytes);
            memory.Add((IntPtr)pointer);
            for (var i = 0; i < bytes; i++) pointer[i] = 0;
            return pointer;
        }

        internal byte* String(string text, string what)
        {
            var bytes = Text.ToBytes(text, what);
            var pointer = (byte*)Zeros(bytes.Length);
            Marshal.Copy(bytes, 0, (IntPtr)pointer, bytes.Length);
            return pointer;
        }

        internal void* Pin(byte[] bytes) => (void*)Keep(bytes, GCHandleType.Pinned).AddrOfPinnedObject();

        /// <summary>A pointer that callbacks turn into `target` again.</summary>
        internal void* User(object target) => (void*)GCHandle.ToIntPtr(Keep(target, GCHandleType.Normal));

        internal void* Use(Handle handle)
        {
            if (handle == null) throw new ArgumentNullException(nameof(handle));
            var added = false;
            handle.DangerousAddRef(ref added);
            handles.Add(handle);
            return (void*)handle.DangerousGetHandle();
        }

        GCHandle Keep(object target, GCHandleType type)
        {
            var handle = GCHandle.Alloc(target, type);
            objects.Add(handle);
            return handle;
        }

        public void Dispose()
        {
            foreach (var pointer in memory) Marshal.FreeHGlobal(pointer);
            foreach (var handle in objects) handle.Free();
            foreach (var handle in handles) handle.DangerousRelease();
            memory.Clear();
            objects.Clear();
            handles.Clear();
        }
    }
}
