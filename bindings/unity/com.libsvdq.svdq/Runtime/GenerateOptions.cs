using System.Collections.Generic;
using Svdq.Native;

namespace Svdq
{
    /// <summary>What to generate. What is 0 or null takes the model's default.</summary>
    public sealed unsafe class GenerateOptions
    {
        /// <summary>What the picture shows.</summary>
        public string Prompt;
        /// <summary>Pixels, multiples of ModelInfo.SizeMultiple.</summary>
        public int Width, Height;
        /// <summary>Denoising steps.</summary>
        public int Steps;
        /// <summary>Guidance scale, for models that take one.</summary>
        public float Guidance;
        /// <summary>The same seed gives the same picture.</summary>
        public ulong Seed;
        public IReadOnlyList<LoraUse> Loras;

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
                loras = LoraUse.ToNative(Loras, call, out var count),
                lora_count = count,
            };
            if (Prompt != null) native.prompt = call.String(Prompt, nameof(Prompt));
            return native;
        }
    }
}
