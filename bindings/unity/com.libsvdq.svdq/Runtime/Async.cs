using System;
using System.Threading;
using System.Threading.Tasks;

namespace Svdq
{
    // The parts of Job and Model to await. They poll, so that no thread waits and nothing calls back: each
    // continues in the context in which it was awaited, which in Unity is the main thread.

    partial class Job
    {
        /// <summary>Between the polls of Finish.</summary>
        const int PollMilliseconds = 10;

        /// <summary>
        /// Waits for the end without blocking; reports on the way, in the context of the caller. Throws
        /// OperationCanceledException after `cancel`, and SvdqException if the job ended otherwise than well.
        /// </summary>
        public async Task Finish(
            IProgress<JobStatus> progress = null, CancellationToken cancel = default(CancellationToken))
        {
            using (cancel.Register(Cancel))
            {
                while (true)
                {
                    var status = Poll();
                    progress?.Report(status);
                    if (status.Result == Result.Cancelled) cancel.ThrowIfCancellationRequested();
                    ThrowIfFailed();
                    if (status.Ended) return;
                    await Task.Delay(PollMilliseconds);
                }
            }
        }
    }

    partial class Model
    {
        /// <summary>Loads a model without blocking.</summary>
        public static async Task<Model> LoadAsync(
            Context context,
            ModelOptions options,
            IProgress<JobStatus> progress = null,
            CancellationToken cancel = default(CancellationToken))
        {
            cancel.ThrowIfCancellationRequested();
            using (var job = SubmitLoad(context, options))
            {
                await job.Finish(progress, cancel);
                return job.TakeModel();
            }
        }

        /// <summary>Makes a picture without blocking.</summary>
        public async Task<byte[]> GenerateAsync(
            GenerateOptions options,
            IProgress<JobStatus> progress = null,
            CancellationToken cancel = default(CancellationToken),
            ImageLayout layout = default(ImageLayout))
        {
            cancel.ThrowIfCancellationRequested();
            using (var job = Submit(options))
            {
                await job.Finish(progress, cancel);
                var pixels = new byte[layout.Bytes(job.Width, job.Height)];
                job.ReadImage(pixels, layout);
                return pixels;
            }
        }
    }
}
