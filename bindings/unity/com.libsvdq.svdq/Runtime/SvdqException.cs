using System;
using Svdq.Native;

namespace Svdq
{
    /// <summary>The outcome of a call or a job: svdq_result. Numbers never change.</summary>
    public enum Result
    {
        Ok = 0,
        /// <summary>Not there yet: a job still runs.</summary>
        Pending = 1,
        InvalidArgument = -1,
        BufferTooSmall = -2,
        Cancelled = -3,
        /// <summary>The job has not come to its end.</summary>
        Busy = -4,
        /// <summary>The context was shut down.</summary>
        ShuttingDown = -5,
        /// <summary>The input is sound, but asks for something that the library does not do.</summary>
        Unsupported = -6,
        /// <summary>The package and the native library do not belong together.</summary>
        VersionMismatch = -7,
        Io = -20,
        NotFound = -21,
        /// <summary>A file is damaged, or is not what its format requires.</summary>
        BadFormat = -22,
        /// <summary>A file is sound, but belongs to another model.</summary>
        WrongModel = -23,
        OutOfHostMemory = -40,
        OutOfDeviceMemory = -41,
        /// <summary>The context's memory budget is too small.</summary>
        MemoryBudget = -42,
        NoDriver = -60,
        DriverTooOld = -61,
        NoDevice = -62,
        DeviceUnsupported = -63,
        /// <summary>The GPU failed for good: dispose the context and what was made from it.</summary>
        DeviceLost = -64,
        /// <summary>A bug in the library. The handles may still be used.</summary>
        Internal = -99,
    }

    /// <summary>A call or a job that failed, with the library's sentence about why.</summary>
    public sealed class SvdqException : Exception
    {
        public Result Result { get; }

        public SvdqException(Result result, string text, Exception inner = null)
            : base(Text.ResultName(result) + ": " + text, inner)
        {
            Result = result;
        }

        /// <summary>Throws unless the call that this thread just made went well.</summary>
        internal static unsafe void Check(int result, Exception inner = null)
        {
            if (result == Api.SVDQ_OK) return;
            var text = Text.Read((buf, cap, needed) => Api.svdq_last_error(buf, cap, needed));
            throw new SvdqException((Result)result, text, inner);
        }
    }
}
