using System;
using System.Collections;
using System.Threading;
using NUnit.Framework;
using Unity.Collections;
using UnityEngine;
using UnityEngine.TestTools;

namespace Svdq.Tests
{
    /// <summary>With the model whose folder the environment variable SVDQ_TEST_MODEL names.</summary>
    public sealed class TextureTests
    {
        static readonly GenerateOptions Potion = new GenerateOptions
        {
            Prompt = "pixel art blue potion",
            Seed = 7,
            Steps = 4,
            PreviewEvery = 1,
        };

        Context context;
        Model model;

        [SetUp]
        public void Load()
        {
            var folder = Environment.GetEnvironmentVariable("SVDQ_TEST_MODEL");
            if (folder == null) Assert.Ignore("SVDQ_TEST_MODEL is not set");
            context = new Context(new ContextOptions { Device = DeviceSelect.Cpu });
            model = Model.Load(context, new ModelOptions(folder));
        }

        [TearDown]
        public void Release()
        {
            model?.Dispose();
            context?.Dispose();
        }

        /// <summary>The picture as image files have it.</summary>
        byte[] TopDown(PixelFormat format)
        {
            var layout = new ImageLayout(format, RowOrder.TopDown);
            var pixels = new byte[layout.Bytes(model.WidthOf(Potion), model.HeightOf(Potion))];
            model.Generate(Potion, pixels, layout);
            return pixels;
        }

        [UnityTest]
        public IEnumerator ACoroutineFillsATexture()
        {
            var expected = TopDown(PixelFormat.Rgba8);
            var texture = model.CreateTexture(Potion);
            Texture2D preview = null;
            var (serial, previews) = (0u, 0);
            using (var job = model.Submit(Potion))
            {
                while (!job.Poll().Ended)
                {
                    if (job.ReadPreview(ref preview, ref serial)) previews++;
                    yield return null;
                }
                job.ThrowIfFailed();
                if (job.ReadPreview(ref preview, ref serial)) previews++;
                job.ReadImage(texture);
            }
            Assert.Greater(previews, 0);
            // (0, 0) of a texture is at the bottom.
            for (var y = 0; y < texture.height; y += 9)
                for (var x = 0; x < texture.width; x += 9)
                {
                    var at = ((texture.height - 1 - y) * texture.width + x) * 4;
                    var color = (Color32)texture.GetPixel(x, y);
                    Assert.AreEqual(expected[at], color.r);
                    Assert.AreEqual(expected[at + 1], color.g);
                    Assert.AreEqual(expected[at + 2], color.b);
                    Assert.AreEqual(255, color.a);
                }
        }

        [UnityTest]
        public IEnumerator ATaskFillsATextureOfAnyFormat()
        {
            var expected = TopDown(PixelFormat.Rgba8);
            foreach (var format in new[] { TextureFormat.RGBA32, TextureFormat.BGRA32, TextureFormat.RGB24 })
            {
                var texture = new Texture2D(model.WidthOf(Potion), model.HeightOf(Potion), format, false);
                var task = model.GenerateAsync(Potion, texture);
                while (!task.IsCompleted) yield return null;
                task.GetAwaiter().GetResult();
                var color = (Color32)texture.GetPixel(3, texture.height - 1);
                Assert.AreEqual(expected[3 * 4], color.r);
                Assert.AreEqual(expected[3 * 4 + 1], color.g);
                Assert.AreEqual(expected[3 * 4 + 2], color.b);
            }
        }

        [Test]
        public void ANativeArrayIsFilledInPlace()
        {
            var expected = TopDown(PixelFormat.Bgra8);
            using (var pixels = new NativeArray<byte>(expected.Length, Allocator.Persistent))
            {
                model.Generate(Potion, pixels, new ImageLayout(PixelFormat.Bgra8, RowOrder.TopDown));
                CollectionAssert.AreEqual(expected, pixels.ToArray());
            }
        }

        [UnityTest]
        public IEnumerator ATaskIsCancelled()
        {
            var texture = model.CreateTexture(Potion);
            using (var source = new CancellationTokenSource())
            {
                var task = model.GenerateAsync(Potion, texture, null, source.Token);
                source.Cancel();
                while (!task.IsCompleted) yield return null;
                Assert.IsTrue(task.IsCanceled);
            }
        }

        [Test]
        public void ATextureOfAnotherKindIsRefused()
        {
            var wrong = new Texture2D(8, 8, TextureFormat.RGBA32, false);
            var compressed = new Texture2D(8, 8, TextureFormat.DXT1, false);
            using (var job = model.Submit(Potion))
            {
                Assert.Throws<ArgumentException>(() => job.ReadImage(wrong));
                Assert.IsTrue(job.Wait());
            }
            Assert.Throws<ArgumentException>(() => model.GenerateAsync(Potion, compressed).GetAwaiter().GetResult());
        }
    }
}
