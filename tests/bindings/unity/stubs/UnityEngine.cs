// As much of UnityEngine as the package uses, with textures that hold their pixels. Not Unity: what the tests
// show with it is that the package's calls compile, and which bytes go where.
using System;
using System.Collections.Generic;
using System.Runtime.InteropServices;

namespace Unity.Collections
{
    public enum Allocator { None = 1, Temp = 2, TempJob = 3, Persistent = 4 }

    public unsafe struct NativeArray<T> : IDisposable where T : struct
    {
        internal IntPtr Pointer;
        public int Length { get; }

        public NativeArray(int length, Allocator allocator)
        {
            Length = length;
            Pointer = Marshal.AllocHGlobal(length * Marshal.SizeOf(typeof(T)));
        }

        public T[] ToArray()
        {
            var array = new T[Length];
            var handle = GCHandle.Alloc(array, GCHandleType.Pinned);
            var bytes = (long)Length * Marshal.SizeOf(typeof(T));
            Buffer.MemoryCopy((void*)Pointer, (void*)handle.AddrOfPinnedObject(), bytes, bytes);
            handle.Free();
            return array;
        }

        public void Dispose() => Marshal.FreeHGlobal(Pointer);
    }
}

namespace Unity.Collections.LowLevel.Unsafe
{
    public static unsafe class NativeArrayUnsafeUtility
    {
        public static void* GetUnsafePtr<T>(this NativeArray<T> array) where T : struct => (void*)array.Pointer;
    }
}

namespace UnityEngine
{
    public class Object { }

    public class Component : Object
    {
        public T GetComponent<T>() where T : new() => new T();
    }

    public class MonoBehaviour : Component { }

    public class Material : Object
    {
        public Texture mainTexture { get; set; }
    }

    public class Renderer : Component
    {
        public Material material { get; } = new Material();
    }

    public class Texture : Object
    {
        public int width { get; protected set; }
        public int height { get; protected set; }
        public int mipmapCount { get; protected set; } = 1;
    }

    public enum TextureFormat { RGB24 = 3, RGBA32 = 4, DXT1 = 10, BGRA32 = 14 }

    public struct Color
    {
        public float r, g, b, a;
    }

    public struct Color32
    {
        public byte r, g, b, a;

        public static implicit operator Color32(Color color) => new Color32
        {
            r = (byte)Math.Round(color.r * 255),
            g = (byte)Math.Round(color.g * 255),
            b = (byte)Math.Round(color.b * 255),
            a = (byte)Math.Round(color.a * 255),
        };
    }

    public class Texture2D : Texture
    {
        readonly Unity.Collections.NativeArray<byte> raw;
        byte[] uploaded;
        public TextureFormat format { get; }

        int PixelBytes => format == TextureFormat.RGB24 ? 3 : 4;

        public Texture2D(int width, int height, TextureFormat textureFormat, bool mipChain)
        {
            this.width = width;
            this.height = height;
            format = textureFormat;
            raw = new Unity.Collections.NativeArray<byte>(
                width * height * PixelBytes, Unity.Collections.Allocator.Persistent);
        }

        public Unity.Collections.NativeArray<T> GetRawTextureData<T>() where T : struct
        {
            return (Unity.Collections.NativeArray<T>)(object)raw;
        }

        public void Apply(bool updateMipmaps) => uploaded = raw.ToArray();

        /// <summary>(0, 0) is the first pixel in memory, and the lower left corner.</summary>
        public Color GetPixel(int x, int y)
        {
            var at = (y * width + x) * PixelBytes;
            var bgr = format == TextureFormat.BGRA32;
            return new Color
            {
                r = uploaded[bgr ? at + 2 : at] / 255f,
                g = uploaded[at + 1] / 255f,
                b = uploaded[bgr ? at : at + 2] / 255f,
                a = PixelBytes == 4 ? uploaded[at + 3] / 255f : 1,
            };
        }
    }

    public static class Debug
    {
        public static readonly List<string> Lines = new List<string>();

        public static void Log(object message) => Lines.Add("log " + message);
        public static void LogWarning(object message) => Lines.Add("warning " + message);
        public static void LogError(object message) => Lines.Add("error " + message);
    }

    public static class Application
    {
        public static event Action quitting;
        public static string streamingAssetsPath => "";
        public static void Quit() => quitting?.Invoke();
    }

    [AttributeUsage(AttributeTargets.Method)]
    public class RuntimeInitializeOnLoadMethodAttribute : Attribute { }

    [AttributeUsage(AttributeTargets.Field)]
    public class TooltipAttribute : Attribute
    {
        public TooltipAttribute(string tooltip) { }
    }
}
