using System;
using System.Threading;
using System.Threading.Tasks;
using Unity.Collections;
using Unity.Collections.LowLevel.Unsafe;
using UnityEngine;

namespace Svdq
{
    /// <summary>
    /// What there is for textures, native arrays and the console: the only file of the package that needs
    /// Unity. Textures are read and written in the main thread.
    /// </summary>
    public static class UnityExtensions
    {
        /// <summary>A texture of the size of the picture that `options` ask for.</summary>
        public static Texture2D CreateTexture(this Model model, GenerateOptions options) =>
            new Texture2D(model.WidthOf(options), model.HeightOf(options), TextureFormat.RGBA32, false);

        /// <summary>Makes a picture and puts it into `texture`, which has to have its size. Blocks no thread.</summary>
        public static async Task GenerateAsync(
            this Model model,
            GenerateOptions options,
            Texture2D texture,
            IProgress<JobStatus> progress = null,
            CancellationToken cancel = default(CancellationToken))
        {
            Layout(texture);
            cancel.ThrowIfCancellationRequested();
            using (var job = model.Submit(options))
            {
                await job.Finish(progress, cancel);
                job.ReadImage(texture);
            }
        }

        /// <summary>Copies the picture into `texture`, which has to have its size.</summary>
        public static void ReadImage(this GenerateJob job, Texture2D texture)
        {
            CheckSize(texture, job.Width, job.Height);
            job.ReadImage(texture.GetRawTextureData<byte>(), Layout(texture));
            Apply(texture);
        }

        /// <summary>
        /// Copies the newest preview into `texture` if it is newer than `serial`, which becomes its own; makes
        /// the texture where there is none. False: there is no newer one.
        /// </summary>
        public static bool ReadPreview(this GenerateJob job, ref Texture2D texture, ref uint serial)
        {
            var status = job.Poll();
            if (status.PreviewSerial == serial) return false;
            var (width, height) = (status.PreviewWidth, status.PreviewHeight);
            if (texture == null) texture = new Texture2D(width, height, TextureFormat.RGBA32, false);
            CheckSize(texture, width, height);
            job.ReadPreview(texture.GetRawTextureData<byte>(), Layout(texture));
            Apply(texture);
            serial = status.PreviewSerial;
            return true;
        }

        /// <summary>Makes a picture in a native array. Blocks until it is done.</summary>
        public static unsafe void Generate(
            this Model model,
            GenerateOptions options,
            NativeArray<byte> pixels,
            ImageLayout layout = default(ImageLayout)) =>
            model.Generate(options, (IntPtr)pixels.GetUnsafePtr(), pixels.Length, layout);

        /// <summary>Copies the picture to a native array.</summary>
        public static unsafe void ReadImage(
            this GenerateJob job, NativeArray<byte> pixels, ImageLayout layout = default(ImageLayout)) =>
            job.ReadImage((IntPtr)pixels.GetUnsafePtr(), pixels.Length, layout);

        /// <summary>Copies the newest preview to a native array.</summary>
        public static unsafe void ReadPreview(
            this GenerateJob job, NativeArray<byte> pixels, ImageLayout layout = default(ImageLayout)) =>
            job.ReadPreview((IntPtr)pixels.GetUnsafePtr(), pixels.Length, layout);

        /// <summary>Moves the lines of a context's log to the console. For Update.</summary>
        public static void PumpLog(this Context context)
        {
            while (context.TryReadLog(out var level, out var line))
            {
                if (level == LogLevel.Error) Debug.LogError(line);
                else if (level == LogLevel.Warning) Debug.LogWarning(line);
                else Debug.Log(line);
            }
        }

        static ImageLayout Layout(Texture2D texture)
        {
            switch (texture.format)
            {
                case TextureFormat.RGBA32:
                    return new ImageLayout(PixelFormat.Rgba8, RowOrder.BottomUp);
                case TextureFormat.BGRA32:
                    return new ImageLayout(PixelFormat.Bgra8, RowOrder.BottomUp);
                case TextureFormat.RGB24:
                    return new ImageLayout(PixelFormat.Rgb8, RowOrder.BottomUp);
                default:
                    throw new ArgumentException("is neither RGBA32 nor BGRA32 nor RGB24", nameof(texture));
            }
        }

        static void CheckSize(Texture2D texture, int width, int height)
        {
            if (texture.width == width && texture.height == height) return;
            var sizes = texture.width + "x" + texture.height + ", not " + width + "x" + height;
            throw new ArgumentException("is " + sizes, nameof(texture));
        }

        static void Apply(Texture2D texture) => texture.Apply(texture.mipmapCount > 1);

        /// <summary>No job outlives the game, or its play mode in the editor.</summary>
        [RuntimeInitializeOnLoadMethod]
        static void ShutdownOnQuit()
        {
            Application.quitting -= Shutdown;
            Application.quitting += Shutdown;
        }

        static void Shutdown() => Context.ShutdownAll(10_000);
    }
}
