using System;
using System.Collections.Generic;
using Svdq.Native;

namespace Svdq
{
    /// <summary>What a LoRA brings to its model.</summary>
    public struct LoraInfo
    {
        /// <summary>The largest rank.</summary>
        public int Rank;
        /// <summary>Modules of the file that change the model.</summary>
        public int Modules;
        /// <summary>Tensors of the file for which the model has no place.</summary>
        public int UnusedTensors;
        /// <summary>Channels of a control image; zeros stand for it.</summary>
        public int ControlChannels;
    }

    /// <summary>A LoRA, loaded for one model. It changes the pictures that name it, and no others.</summary>
    public sealed unsafe class Lora : Handle
    {
        public Model Model { get; }

        /// <summary>Loads it. Blocks; the model may be in use meanwhile.</summary>
        public Lora(Model model, Source source)
        {
            if (source == null) throw new ArgumentNullException(nameof(source));
            Model = model;
            using (var call = new Call())
            {
                var native = source.ToNative(call);
                svdq_lora* lora;
                var result = Api.svdq_lora_load((svdq_model*)call.Use(model), &native, &lora);
                SvdqException.Check(result, source.Error);
                Set(lora);
            }
        }

        public LoraInfo Info
        {
            get
            {
                svdq_lora_info info;
                info.struct_size = (uint)sizeof(svdq_lora_info);
                using (var self = Use())
                    SvdqException.Check(Api.svdq_lora_get_info((svdq_lora*)self.Pointer, &info));
                return new LoraInfo
                {
                    Rank = checked((int)info.rank),
                    Modules = checked((int)info.modules),
                    UnusedTensors = checked((int)info.unused_tensors),
                    ControlChannels = checked((int)info.control_channels),
                };
            }
        }

        protected override bool ReleaseHandle()
        {
            Api.svdq_lora_release((svdq_lora*)handle);
            return true;
        }
    }

    /// <summary>A LoRA in a picture.</summary>
    public struct LoraUse
    {
        public Lora Lora;
        /// <summary>1 is what it was trained for; 0 leaves it out.</summary>
        public float Strength;

        public LoraUse(Lora lora, float strength = 1)
        {
            Lora = lora;
            Strength = strength;
        }

        internal static unsafe svdq_lora_ref* ToNative(IReadOnlyList<LoraUse> loras, Call call, out uint count)
        {
            count = loras == null ? 0 : (uint)loras.Count;
            if (count == 0) return null;
            var native = (svdq_lora_ref*)call.Zeros(checked((int)count * sizeof(svdq_lora_ref)));
            for (var i = 0; i < loras.Count; i++)
            {
                native[i].struct_size = (uint)sizeof(svdq_lora_ref);
                native[i].strength = loras[i].Strength;
                native[i].lora = (svdq_lora*)call.Use(loras[i].Lora);
            }
            return native;
        }
    }
}
