using System;
using System.IO;
using System.Runtime.InteropServices;
using Svdq.Native;

namespace Svdq
{
    /// <summary>
    /// Where a model, a part of it or a LoRA is read from: a path, memory, or a stream (an asset bundle,
    /// a pak file). Files in memory and streams have names, such as "text_encoder/config.json", where they
    /// are files of a pipeline's folder; without one they are .safetensors files.
    /// </summary>
    public sealed unsafe class Source
    {
        readonly string path;
        readonly byte[] bytes;
        readonly IntPtr data;
        readonly ulong size;
        readonly StreamReader reader;

        Source(string path, byte[] bytes, IntPtr data, ulong size, StreamReader reader)
        {
            this.path = path;
            this.bytes = bytes;
            this.data = data;
            this.size = size;
            this.reader = reader;
        }

        /// <summary>A file or a folder.</summary>
        public static Source Path(string path)
        {
            if (path == null) throw new ArgumentNullException(nameof(path));
            return new Source(path, null, IntPtr.Zero, 0, null);
        }

        public static implicit operator Source(string path) => Path(path);

        /// <summary>A file in memory, which is pinned while it is read.</summary>
        public static Source Memory(byte[] bytes, string name = null)
        {
            if (bytes == null) throw new ArgumentNullException(nameof(bytes));
            return new Source(name, bytes, IntPtr.Zero, (ulong)bytes.LongLength, null);
        }

        /// <summary>A file in native memory, which has to stay until the model is loaded.</summary>
        public static Source Memory(IntPtr data, long size, string name = null)
        {
            if (data == IntPtr.Zero) throw new ArgumentNullException(nameof(data));
            return new Source(name, null, data, checked((ulong)size), null);
        }

        /// <summary>
        /// A file in a stream that can seek. It is read by the thread that loads, which for
        /// Model.SubmitLoad and LoadAsync is one of the library's, and stays open.
        /// </summary>
        public static Source Stream(Stream stream, string name = null)
        {
            if (stream == null) throw new ArgumentNullException(nameof(stream));
            if (!stream.CanSeek) throw new ArgumentException("cannot seek", nameof(stream));
            return new Source(name, null, IntPtr.Zero, (ulong)stream.Length, new StreamReader(stream));
        }

        /// <summary>What the stream threw when it was last read.</summary>
        internal Exception Error => reader?.Error;

        internal svdq_source ToNative(Call call)
        {
            var native = new svdq_source { struct_size = (uint)sizeof(svdq_source), size = size };
            if (path != null) native.path = call.String(path, nameof(path));
            if (bytes != null || data != IntPtr.Zero)
            {
                native.kind = Api.SVDQ_SOURCE_MEMORY;
                native.data = bytes != null ? call.Pin(bytes) : (void*)data;
            }
            else if (reader != null)
            {
                native.kind = Api.SVDQ_SOURCE_CALLBACKS;
                native.read_at = StreamReader.Function;
                native.user = call.User(reader);
                reader.Error = null;
            }
            else
            {
                native.kind = Api.SVDQ_SOURCE_PATH;
            }
            return native;
        }
    }

    /// <summary>Reads a stream for the library.</summary>
    sealed unsafe class StreamReader
    {
        [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
        delegate int ReadAt(void* user, ulong offset, void* dst, UIntPtr size);

        /// <summary>Kept for as long as there is native code that may call it.</summary>
        static readonly ReadAt Managed = Read;
        internal static readonly void* Function = (void*)Marshal.GetFunctionPointerForDelegate(Managed);

        readonly Stream stream;
        readonly byte[] buffer = new byte[1 << 16];

        internal Exception Error { get; set; }

        internal StreamReader(Stream stream)
        {
            this.stream = stream;
        }

        [MonoPInvokeCallback(typeof(ReadAt))]
        static int Read(void* user, ulong offset, void* dst, UIntPtr size)
        {
            var reader = (StreamReader)GCHandle.FromIntPtr((IntPtr)user).Target;
            try
            {
                reader.Copy(checked((long)offset), (byte*)dst, (ulong)size);
                return Api.SVDQ_OK;
            }
            catch (Exception exception)
            {
                // No exception may go through native code: it is thrown when the call is back.
                reader.Error = exception;
                return (int)Result.Io;
            }
        }

        void Copy(long offset, byte* to, ulong size)
        {
            lock (stream)
            {
                stream.Seek(offset, SeekOrigin.Begin);
                while (size != 0)
                {
                    var read = stream.Read(buffer, 0, (int)Math.Min(size, (ulong)buffer.Length));
                    if (read == 0) throw new EndOfStreamException();
                    Marshal.Copy(buffer, 0, (IntPtr)to, read);
                    to += read;
                    size -= (ulong)read;
                }
            }
        }
    }

    /// <summary>Tells IL2CPP and other compilers to native code, which go by this name, what C calls.</summary>
    [AttributeUsage(AttributeTargets.Method)]
    sealed class MonoPInvokeCallbackAttribute : Attribute
    {
        internal MonoPInvokeCallbackAttribute(Type type) { }
    }
}
