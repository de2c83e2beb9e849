using System;
using System.Collections.Generic;
using Svdq.Native;

namespace Svdq
{
    /// <summary>What to generate. What is 0 or null takes the model's default.</summary>
    public sealed unsafe class GenerateOptions
    {
        /// <summary>What the picture shows: this, or Encoded.</summary>
        public string Prompt;
        /// <summary>A prompt that was encoded before.</summary>
        public Prompt Encoded;
        /// <summary>Pixels, multiples of ModelInfo.SizeMultiple.</summary>
        public int Width, Height;
        /// <summary>Denoising steps.</summary>
        public int Steps;
        /// <summary>Guidance scale, for models that take one.</summary>
        public float Guidance;
        /// <summary>The same seed gives the same picture.</summary>
        public ulong Seed;
        public IReadOnlyList<LoraUse> Loras;
        /// <summary>A picture to start from. The model has to be loaded with ModelOptions.ImageInput.</summary>
        public InitImage Init;
        /// <summary>Up to 1, which replaces all of Init.</summary>
        public float InitStrength;
        /// <summary>Makes a preview every so many steps of a job. 0: none.</summary>
        public int PreviewEvery;

        internal svdq_generate_params ToNative(Call call)
        {
            var native = new svdq_generate_params
            {
                struct_size = (uint)sizeof(svdq_generate_params),
                width = checked((uint)Width),
                height = checked((uint)Height),
                steps = checked((uint)Steps),
                guidance = Guidance,
                seed = Seed,
                init_strength = InitStrength,
                preview_every = checked((uint)PreviewEvery),
                loras = LoraUse.ToNative(Loras, call, out var count),
                lora_count = count,
            };
            if (Prompt != null) native.prompt = call.String(Prompt, nameof(Prompt));
            if (Encoded != null) native.encoded = (svdq_prompt*)call.Use(Encoded);
            if (Init != null)
            {
                if (Init.Pixels == null) throw new ArgumentNullException(nameof(Init));
                var image = (svdq_image*)call.Zeros(sizeof(svdq_image));
                var pixels = call.Pin(Init.Pixels);
                *image = Init.Layout.ToNative(Init.Width, Init.Height, pixels, Init.Pixels.LongLength);
                native.init = image;
            }
            return native;
        }
    }

    /// <summary>What a picture takes beside its model.</summary>
    public struct GenerateCost
    {
        /// <summary>Whether the memory budget and the free memory are enough now.</summary>
        public bool Fits;
        /// <summary>Bytes of temporaries on the GPU; 0 on the CPU.</summary>
        public ulong DeviceBytes;
        /// <summary>Bytes of temporaries in the host's memory, at most at a time.</summary>
        public ulong HostBytes;
        /// <summary>Bytes of the picture in RGBA8.</summary>
        public ulong ImageBytes;
    }
}
