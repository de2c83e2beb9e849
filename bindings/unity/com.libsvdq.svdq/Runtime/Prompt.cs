using System.Collections.Generic;
using Svdq.Native;

namespace Svdq
{
    /// <summary>A prompt that was encoded once for many pictures of its model.</summary>
    public sealed unsafe class Prompt : Handle
    {
        public Model Model { get; }

        /// <summary>Encodes it, with the LoRAs that change text encoders. Blocks.</summary>
        public Prompt(Model model, string text, IReadOnlyList<LoraUse> loras = null)
        {
            Model = model;
            using (var call = new Call())
            {
                var native = new svdq_prompt_params
                {
                    struct_size = (uint)sizeof(svdq_prompt_params),
                    text = call.String(text, nameof(text)),
                    loras = LoraUse.ToNative(loras, call, out var count),
                    lora_count = count,
                };
                svdq_prompt* prompt;
                SvdqException.Check(Api.svdq_prompt_encode((svdq_model*)call.Use(model), &native, &prompt));
                Set(prompt);
            }
        }

        protected override bool ReleaseHandle()
        {
            Api.svdq_prompt_release((svdq_prompt*)handle);
            return true;
        }
    }
}
