using System;
using System.Collections.Generic;
using Svdq.Native;

namespace Svdq
{
    /// <summary>How activations of 4-bit layers are computed.</summary>
    public enum Profile
    {
        /// <summary>What suits the device and the checkpoint.</summary>
        Default = 0,
        W4A4 = (int)Api.SVDQ_PROFILE_W4A4,
        W4A8 = (int)Api.SVDQ_PROFILE_W4A8,
        W4A16 = (int)Api.SVDQ_PROFILE_W4A16,
    }

    public enum ModelFamily
    {
        Flux1Dev = (int)Api.SVDQ_FAMILY_FLUX1_DEV,
        Flux1Schnell = (int)Api.SVDQ_FAMILY_FLUX1_SCHNELL,
    }

    public enum Precision
    {
        /// <summary>Not quantised.</summary>
        None = 0,
        Int4 = (int)Api.SVDQ_PRECISION_INT4,
        Nvfp4 = (int)Api.SVDQ_PRECISION_NVFP4,
    }

    /// <summary>What to load.</summary>
    public sealed class ModelOptions
    {
        /// <summary>A pipeline's folder, or the parts of a model in any order.</summary>
        public readonly List<Source> Sources;
        public Profile Profile;
        /// <summary>Keeps what GenerateOptions.Init needs.</summary>
        public bool ImageInput;

        public ModelOptions(params Source[] sources)
        {
            Sources = new List<Source>(sources);
        }

        internal unsafe svdq_model_params ToNative(Call call)
        {
            var sources = (svdq_source*)call.Zeros(checked(Sources.Count * sizeof(svdq_source)));
            for (var i = 0; i < Sources.Count; i++)
            {
                if (Sources[i] == null) throw new ArgumentException("has a null in it", nameof(Sources));
                sources[i] = Sources[i].ToNative(call);
            }
            return new svdq_model_params
            {
                struct_size = (uint)sizeof(svdq_model_params),
                source_count = (uint)Sources.Count,
                sources = sources,
                profile = (uint)Profile,
                flags = ImageInput ? Api.SVDQ_MODEL_IMAGE_INPUT : 0,
            };
        }

        /// <summary>What a stream threw.</summary>
        internal Exception Error => Sources.Find(source => source?.Error != null)?.Error;
    }

    /// <summary>What a model is.</summary>
    public struct ModelInfo
    {
        public ModelFamily Family;
        public Precision Precision;
        /// <summary>Of the low-rank branch; 0 if not quantised.</summary>
        public int Rank;
        public int DefaultSteps;
        public float DefaultGuidance;
        /// <summary>Width and height are multiples of this many pixels.</summary>
        public int SizeMultiple;
        public int DefaultWidth, DefaultHeight;
        public Profile Profile;
        public bool ImageInput;
        /// <summary>How many LoRAs a picture can have.</summary>
        public int MaxLoras;
        /// <summary>Bytes of weights: in the files, and of a loaded model on the GPU and in the host's memory.</summary>
        public ulong StoredBytes, DeviceBytes, HostBytes;

        internal ModelInfo(svdq_model_info info)
        {
            Family = (ModelFamily)info.family;
            Precision = (Precision)info.precision;
            Rank = checked((int)info.rank);
            DefaultSteps = checked((int)info.default_steps);
            DefaultGuidance = info.default_guidance;
            SizeMultiple = checked((int)info.size_multiple);
            DefaultWidth = checked((int)info.default_width);
            DefaultHeight = checked((int)info.default_height);
            Profile = (Profile)info.profile;
            ImageInput = (info.flags & Api.SVDQ_MODEL_IMAGE_INPUT) != 0;
            MaxLoras = (int)Math.Min(info.max_loras, int.MaxValue);
            StoredBytes = info.stored_bytes;
            DeviceBytes = info.device_bytes;
            HostBytes = info.host_bytes;
        }
    }

    /// <summary>A model that can generate. Calls for the same model take turns.</summary>
    public sealed partial class Model : Handle
    {
        /// <summary>Kept, so that Context.ShutdownAll knows it for as long as there is work of it.</summary>
        public Context Context { get; }

        internal Model(Context context)
        {
            Context = context;
        }

        /// <summary>Reads only what says what a model is; needs no GPU.</summary>
        public static unsafe ModelInfo Inspect(ModelOptions options)
        {
            using (var call = new Call())
            {
                var native = options.ToNative(call);
                svdq_model_info info;
                info.struct_size = (uint)sizeof(svdq_model_info);
                SvdqException.Check(Api.svdq_model_inspect(&native, &info), options.Error);
                return new ModelInfo(info);
            }
        }

        /// <summary>Loads a model. Blocks until it can generate.</summary>
        public static unsafe Model Load(Context context, ModelOptions options)
        {
            using (var call = new Call())
            {
                var native = options.ToNative(call);
                var model = new Model(context);
                svdq_model* pointer;
                var result = Api.svdq_model_load((svdq_context*)call.Use(context), &native, &pointer);
                SvdqException.Check(result, options.Error);
                model.Set(pointer);
                return model;
            }
        }

        /// <summary>Starts to load a model.</summary>
        public static LoadJob SubmitLoad(Context context, ModelOptions options) => new LoadJob(context, options);

        public unsafe ModelInfo Info
        {
            get
            {
                svdq_model_info info;
                info.struct_size = (uint)sizeof(svdq_model_info);
                using (var self = Use())
                    SvdqException.Check(Api.svdq_model_get_info((svdq_model*)self.Pointer, &info));
                return new ModelInfo(info);
            }
        }

        /// <summary>Checks `options` and says what the picture takes, without making it.</summary>
        public unsafe GenerateCost Check(GenerateOptions options)
        {
            using (var call = new Call())
            {
                var native = options.ToNative(call);
                svdq_generate_cost cost;
                cost.struct_size = (uint)sizeof(svdq_generate_cost);
                SvdqException.Check(Api.svdq_generate_check((svdq_model*)call.Use(this), &native, &cost));
                return new GenerateCost
                {
                    Fits = cost.fits != 0,
                    DeviceBytes = cost.device_bytes,
                    HostBytes = cost.host_bytes,
                    ImageBytes = cost.image_bytes,
                };
            }
        }

        /// <summary>The width of the picture that `options` ask for.</summary>
        public int WidthOf(GenerateOptions options) => options.Width != 0 ? options.Width : Info.DefaultWidth;

        /// <summary>The height of the picture that `options` ask for.</summary>
        public int HeightOf(GenerateOptions options) => options.Height != 0 ? options.Height : Info.DefaultHeight;

        /// <summary>Makes a picture in memory of the caller's, `capacity` bytes. Blocks until it is done.</summary>
        public unsafe void Generate(
            GenerateOptions options, IntPtr pixels, long capacity, ImageLayout layout = default(ImageLayout))
        {
            using (var call = new Call())
            {
                var native = options.ToNative(call);
                var model = (svdq_model*)call.Use(this);
                var image = layout.ToNative(WidthOf(options), HeightOf(options), (void*)pixels, capacity);
                SvdqException.Check(Api.svdq_generate(model, &native, &image));
            }
        }

        /// <summary>Makes a picture in an array. Blocks until it is done.</summary>
        public unsafe void Generate(GenerateOptions options, byte[] pixels, ImageLayout layout = default(ImageLayout))
        {
            if (pixels == null) throw new ArgumentNullException(nameof(pixels));
            fixed (byte* pointer = pixels) Generate(options, (IntPtr)pointer, pixels.LongLength, layout);
        }

        /// <summary>Starts to make a picture. `options` may be changed afterwards.</summary>
        public GenerateJob Submit(GenerateOptions options) => new GenerateJob(this, options);

        protected override unsafe bool ReleaseHandle()
        {
            Api.svdq_model_release((svdq_model*)handle);
            return true;
        }
    }
}
