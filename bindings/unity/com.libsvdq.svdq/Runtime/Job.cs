using System;
using System.Threading;
using Svdq.Native;

namespace Svdq
{
    public enum JobState
    {
        Queued = (int)Api.SVDQ_JOB_QUEUED,
        Running = (int)Api.SVDQ_JOB_RUNNING,
        Done = (int)Api.SVDQ_JOB_DONE,
        Cancelled = (int)Api.SVDQ_JOB_CANCELLED,
        Failed = (int)Api.SVDQ_JOB_FAILED,
    }

    public enum JobPhase
    {
        None = (int)Api.SVDQ_PHASE_NONE,
        Load = (int)Api.SVDQ_PHASE_LOAD,
        Encode = (int)Api.SVDQ_PHASE_ENCODE,
        Denoise = (int)Api.SVDQ_PHASE_DENOISE,
        Decode = (int)Api.SVDQ_PHASE_DECODE,
    }

    /// <summary>How far a job is.</summary>
    public struct JobStatus
    {
        public JobState State;
        public JobPhase Phase;
        /// <summary>Denoising steps: done, and in all.</summary>
        public int Step, Steps;
        /// <summary>0 to 1, never shrinks.</summary>
        public float Fraction;
        /// <summary>Result.Pending until the job ended.</summary>
        public Result Result;
        /// <summary>Grows with every new preview. 0: none yet.</summary>
        public uint PreviewSerial;
        /// <summary>Pixels.</summary>
        public int PreviewWidth, PreviewHeight;
        public double QueueMilliseconds, LoadMilliseconds, EncodeMilliseconds, DenoiseMilliseconds,
            DecodeMilliseconds;
        public ulong Seed;

        /// <summary>Whether the job came to its end, well or not.</summary>
        public bool Ended => Result != Result.Pending;
    }

    /// <summary>
    /// Work in the library's own threads. No callbacks: whoever waits for it asks with Poll, which never
    /// blocks. A job that is disposed while it runs is cancelled.
    /// </summary>
    public abstract partial class Job : Handle
    {
        internal Job() { }

        public unsafe JobStatus Poll()
        {
            svdq_job_status status;
            status.struct_size = (uint)sizeof(svdq_job_status);
            using (var self = Use()) SvdqException.Check(Api.svdq_job_poll((svdq_job*)self.Pointer, &status));
            return new JobStatus
            {
                State = (JobState)status.state,
                Phase = (JobPhase)status.phase,
                Step = checked((int)status.step),
                Steps = checked((int)status.steps),
                Fraction = status.fraction,
                Result = (Result)status.result,
                PreviewSerial = status.preview_serial,
                PreviewWidth = checked((int)status.preview_width),
                PreviewHeight = checked((int)status.preview_height),
                QueueMilliseconds = status.queue_ms,
                LoadMilliseconds = status.load_ms,
                EncodeMilliseconds = status.encode_ms,
                DenoiseMilliseconds = status.denoise_ms,
                DecodeMilliseconds = status.decode_ms,
                Seed = status.seed,
            };
        }

        /// <summary>Blocks until the job ended, well or not. False: it did not in so many milliseconds.</summary>
        public unsafe bool Wait(int timeoutMilliseconds = Timeout.Infinite)
        {
            var timeout = timeoutMilliseconds == Timeout.Infinite ? uint.MaxValue : checked((uint)timeoutMilliseconds);
            using (var self = Use())
                return Api.svdq_job_wait((svdq_job*)self.Pointer, timeout) != Api.SVDQ_PENDING;
        }

        /// <summary>Asks the job to stop, from any thread and at any time. Poll tells when it has.</summary>
        public unsafe void Cancel()
        {
            using (var self = Use()) SvdqException.Check(Api.svdq_job_cancel((svdq_job*)self.Pointer));
        }

        /// <summary>Why the job failed or was cancelled; "" unless it did.</summary>
        public unsafe string Error
        {
            get
            {
                using (var self = Use())
                {
                    var job = (svdq_job*)self.Pointer;
                    return Text.Read((buf, cap, needed) => Api.svdq_job_error(job, buf, cap, needed));
                }
            }
        }

        /// <summary>Throws if the job ended, but not well.</summary>
        public void ThrowIfFailed()
        {
            var result = Poll().Result;
            if (result != Result.Ok && result != Result.Pending) throw new SvdqException(result, Error, Inner);
        }

        /// <summary>What else there is to say about a failure.</summary>
        internal virtual Exception Inner => null;

        protected override unsafe bool ReleaseHandle()
        {
            Api.svdq_job_release((svdq_job*)handle);
            return true;
        }
    }

    /// <summary>A picture in the making.</summary>
    public sealed unsafe class GenerateJob : Job
    {
        public Model Model { get; }
        /// <summary>Pixels of the picture.</summary>
        public int Width { get; }
        /// <summary>Pixels of the picture.</summary>
        public int Height { get; }

        internal GenerateJob(Model model, GenerateOptions options)
        {
            Model = model;
            Width = model.WidthOf(options);
            Height = model.HeightOf(options);
            using (var call = new Call())
            {
                var native = options.ToNative(call);
                svdq_job* job;
                SvdqException.Check(Api.svdq_job_submit((svdq_model*)call.Use(model), &native, &job));
                Set(job);
            }
        }

        /// <summary>Copies the picture to memory of the caller's. Throws with Result.Busy until it is done.</summary>
        public void ReadImage(IntPtr pixels, long capacity, ImageLayout layout = default(ImageLayout)) =>
            Read(Api.SVDQ_JOB_IMAGE, Width, Height, (void*)pixels, capacity, layout);

        /// <summary>Copies the picture to an array. Throws with Result.Busy until it is done.</summary>
        public void ReadImage(byte[] pixels, ImageLayout layout = default(ImageLayout))
        {
            if (pixels == null) throw new ArgumentNullException(nameof(pixels));
            fixed (byte* pointer = pixels) ReadImage((IntPtr)pointer, pixels.LongLength, layout);
        }

        /// <summary>
        /// Copies the newest preview, of JobStatus.PreviewWidth x PreviewHeight pixels. Throws with Result.Busy
        /// while there is none.
        /// </summary>
        public void ReadPreview(IntPtr pixels, long capacity, ImageLayout layout = default(ImageLayout))
        {
            var status = Poll();
            if (status.PreviewSerial == 0) throw new SvdqException(Result.Busy, "there is no preview yet");
            var (width, height) = (status.PreviewWidth, status.PreviewHeight);
            Read(Api.SVDQ_JOB_PREVIEW, width, height, (void*)pixels, capacity, layout);
        }

        /// <summary>Copies the newest preview to an array. Throws with Result.Busy while there is none.</summary>
        public void ReadPreview(byte[] pixels, ImageLayout layout = default(ImageLayout))
        {
            if (pixels == null) throw new ArgumentNullException(nameof(pixels));
            fixed (byte* pointer = pixels) ReadPreview((IntPtr)pointer, pixels.LongLength, layout);
        }

        void Read(uint which, int width, int height, void* pixels, long capacity, ImageLayout layout)
        {
            var image = layout.ToNative(width, height, pixels, capacity);
            using (var self = Use())
                SvdqException.Check(Api.svdq_job_read_image((svdq_job*)self.Pointer, which, &image));
        }
    }

    /// <summary>A model being loaded.</summary>
    public sealed unsafe class LoadJob : Job
    {
        readonly Context context;
        readonly ModelOptions options;
        /// <summary>Files in memory and streams, which the job uses for as long as it runs.</summary>
        readonly Call call = new Call();

        internal LoadJob(Context context, ModelOptions options)
        {
            this.context = context;
            this.options = options;
            try
            {
                var native = options.ToNative(call);
                svdq_job* job;
                using (var use = context.Use())
                    SvdqException.Check(Api.svdq_job_submit_load((svdq_context*)use.Pointer, &native, &job));
                Set(job);
            }
            catch
            {
                call.Dispose();
                throw;
            }
        }

        /// <summary>The model, once. Throws with Result.Busy until it is loaded.</summary>
        public Model TakeModel()
        {
            ThrowIfFailed();
            var model = new Model(context);
            svdq_model* pointer;
            using (var self = Use())
                SvdqException.Check(Api.svdq_job_take_model((svdq_job*)self.Pointer, &pointer));
            model.Set(pointer);
            return model;
        }

        internal override Exception Inner => options.Error;

        /// <summary>Stops first if it still runs: what it reads goes away.</summary>
        protected override bool ReleaseHandle()
        {
            Api.svdq_job_cancel((svdq_job*)handle);
            Api.svdq_job_wait((svdq_job*)handle, uint.MaxValue);
            base.ReleaseHandle();
            call.Dispose();
            return true;
        }
    }
}
