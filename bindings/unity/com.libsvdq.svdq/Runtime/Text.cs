using System;
using System.Runtime.InteropServices;
using System.Text;
using Svdq.Native;

namespace Svdq
{
    /// <summary>Strings in and out, which are UTF-8 on every platform.</summary>
    internal static unsafe class Text
    {
        /// <summary>Throws for half a surrogate pair, which no UTF-8 can stand for.</summary>
        static readonly Encoding Utf8 = new UTF8Encoding(false, true);

        /// <summary>A native function that writes text to `buf` and the size wanted to `needed`.</summary>
        internal delegate int Writer(byte* buf, UIntPtr cap, UIntPtr* needed);

        /// <summary>All that `writer` has to say, whatever its length.</summary>
        internal static string Read(Writer writer)
        {
            var buffer = new byte[256];
            while (true)
            {
                UIntPtr needed;
                int result;
                fixed (byte* buf = buffer) result = writer(buf, (UIntPtr)(uint)buffer.Length, &needed);
                if (result == Api.SVDQ_OK) return FromBytes(buffer);
                if (result != (int)Result.BufferTooSmall) return "";
                buffer = new byte[checked((int)(ulong)needed)];
            }
        }

        /// <summary>The text before the NUL.</summary>
        internal static string FromBytes(byte[] bytes)
        {
            var length = Array.IndexOf(bytes, (byte)0);
            return Encoding.UTF8.GetString(bytes, 0, length < 0 ? bytes.Length : length);
        }

        /// <summary>The text before the NUL, which lies in the first `capacity` bytes.</summary>
        internal static string FromPointer(byte* text, int capacity)
        {
            var length = 0;
            while (length < capacity && text[length] != 0) length++;
            return Encoding.UTF8.GetString(text, length);
        }

        /// <summary>UTF-8 with a NUL behind it.</summary>
        internal static byte[] ToBytes(string text, string what)
        {
            if (text == null) throw new ArgumentNullException(what);
            if (text.IndexOf('\0') >= 0) throw new ArgumentException("has a NUL in it", what);
            return Utf8.GetBytes(text + "\0");
        }

        internal static string ResultName(Result result) =>
            FromPointer(Api.svdq_result_name((int)result), int.MaxValue);
    }
}
