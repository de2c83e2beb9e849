using System;
using System.Collections.Generic;
using Svdq.Native;

namespace Svdq
{
    public enum DeviceSelect
    {
        /// <summary>The first GPU that can be used, or the CPU if there is none.</summary>
        Best = (int)Api.SVDQ_DEVICE_BEST,
        Index = (int)Api.SVDQ_DEVICE_INDEX,
        Uuid = (int)Api.SVDQ_DEVICE_UUID,
        Luid = (int)Api.SVDQ_DEVICE_LUID,
        Cpu = (int)Api.SVDQ_DEVICE_CPU,
    }

    public enum GpuPriority
    {
        /// <summary>Yields to graphics.</summary>
        Low = (int)Api.SVDQ_PRIORITY_LOW,
        Balanced = (int)Api.SVDQ_PRIORITY_BALANCED,
        High = (int)Api.SVDQ_PRIORITY_HIGH,
    }

    public enum LogLevel
    {
        Error = (int)Api.SVDQ_LOG_ERROR,
        Warning = (int)Api.SVDQ_LOG_WARNING,
        Info = (int)Api.SVDQ_LOG_INFO,
        Debug = (int)Api.SVDQ_LOG_DEBUG,
    }

    /// <summary>How a context is made. All left out is a good choice.</summary>
    public sealed class ContextOptions
    {
        public DeviceSelect Device;
        /// <summary>With DeviceSelect.Index.</summary>
        public uint DeviceIndex;
        /// <summary>The 16 bytes of a UUID, or the 8 of a LUID, with DeviceSelect.Uuid and Luid.</summary>
        public byte[] DeviceId;
        public GpuPriority Priority;
        /// <summary>CPU threads to compute with. 0: one a core.</summary>
        public uint Threads;
        /// <summary>Bytes of GPU memory that models may take. 0: what is free.</summary>
        public ulong MemoryBudget;
    }

    /// <summary>Bytes in use.</summary>
    public struct MemoryInfo
    {
        public ulong DeviceUsed, DevicePeak, DeviceBudget, DeviceFree, HostUsed, HostPeak;
    }

    /// <summary>
    /// What models are loaded into: a device and its threads. All contexts are shut down before the
    /// scripting domain goes: no job outlives a domain reload or the process.
    /// </summary>
    public sealed unsafe class Context : Handle
    {
        /// <summary>How long the end of a domain or of the process waits for jobs to stop.</summary>
        const int LastTimeout = 10_000;

        static readonly List<WeakReference<Context>> All = new List<WeakReference<Context>>();

        static Context()
        {
            AppDomain.CurrentDomain.DomainUnload += (sender, args) => ShutdownAll(LastTimeout);
            AppDomain.CurrentDomain.ProcessExit += (sender, args) => ShutdownAll(LastTimeout);
        }

        public Context(ContextOptions options = null)
        {
            options = options ?? new ContextOptions();
            var native = new svdq_context_params
            {
                struct_size = (uint)sizeof(svdq_context_params),
                header_version =
                    Api.SVDQ_VERSION_MAJOR * 10000 + Api.SVDQ_VERSION_MINOR * 100 + Api.SVDQ_VERSION_PATCH,
                threads = options.Threads,
                device_select = (uint)options.Device,
                device_index = options.DeviceIndex,
                gpu_priority = (uint)options.Priority,
                memory_budget = options.MemoryBudget,
            };
            var id = options.DeviceId ?? new byte[0];
            if (id.Length > 16) throw new ArgumentException("has more than 16 bytes", nameof(options.DeviceId));
            for (var i = 0; i < id.Length; i++) native.device_id[i] = id[i];
            svdq_context* context;
            SvdqException.Check(Api.svdq_context_create(&native, &context));
            Set(context);
            lock (All)
            {
                All.RemoveAll(weak => !weak.TryGetTarget(out _));
                All.Add(new WeakReference<Context>(this));
            }
        }

        /// <summary>The version of the native library, as "0.1.0".</summary>
        public static string LibraryVersion => Text.FromPointer(Api.svdq_version_string(), int.MaxValue);

        /// <summary>One line for bug reports about the native library.</summary>
        public static string BuildInfo => Text.Read((buf, cap, needed) => Api.svdq_build_info(buf, cap, needed));

        public MemoryInfo Memory
        {
            get
            {
                svdq_memory_info info;
                info.struct_size = (uint)sizeof(svdq_memory_info);
                using (var self = Use())
                    SvdqException.Check(Api.svdq_context_get_memory((svdq_context*)self.Pointer, &info));
                return new MemoryInfo
                {
                    DeviceUsed = info.device_used,
                    DevicePeak = info.device_peak,
                    DeviceBudget = info.device_budget,
                    DeviceFree = info.device_free,
                    HostUsed = info.host_used,
                    HostPeak = info.host_peak,
                };
            }
        }

        /// <summary>Changes ContextOptions.MemoryBudget, also while jobs run.</summary>
        public void SetMemoryBudget(ulong bytes)
        {
            using (var self = Use())
                SvdqException.Check(Api.svdq_context_set_memory_budget((svdq_context*)self.Pointer, bytes));
        }

        /// <summary>Takes the oldest line of the log. False: there is none.</summary>
        public bool TryReadLog(out LogLevel level, out string line)
        {
            int read;
            UIntPtr needed;
            byte* small = stackalloc byte[512];
            using (var self = Use())
            {
                var context = (svdq_context*)self.Pointer;
                var result = Api.svdq_context_read_log(context, &read, small, (UIntPtr)512u, &needed);
                line = read == 0 ? null : Text.FromPointer(small, 512);
                while (result == (int)Result.BufferTooSmall)
                {
                    var large = new byte[checked((int)(ulong)needed)];
                    fixed (byte* buf = large)
                        result = Api.svdq_context_read_log(context, &read, buf, (UIntPtr)(uint)large.Length, &needed);
                    line = Text.FromBytes(large);
                }
                SvdqException.Check(result);
            }
            level = (LogLevel)read;
            return read != 0;
        }

        /// <summary>
        /// Cancels all jobs and calls of this context, refuses new ones, and waits until none runs.
        /// False: some still did after so many milliseconds. May be called again.
        /// </summary>
        public bool Shutdown(int timeoutMilliseconds)
        {
            using (var self = Use())
            {
                var context = (svdq_context*)self.Pointer;
                var result = Api.svdq_context_shutdown(context, checked((uint)timeoutMilliseconds));
                if (result == Api.SVDQ_PENDING) return false;
                SvdqException.Check(result);
                return true;
            }
        }

        /// <summary>Shuts down every context that has not been released, in so many milliseconds together.</summary>
        public static bool ShutdownAll(int timeoutMilliseconds)
        {
            var contexts = new List<Context>();
            lock (All)
                foreach (var weak in All)
                    if (weak.TryGetTarget(out var context)) contexts.Add(context);
            var start = Environment.TickCount;
            var all = true;
            foreach (var context in contexts)
            {
                var left = Math.Max(0, timeoutMilliseconds - unchecked(Environment.TickCount - start));
                try
                {
                    all &= context.Shutdown(left);
                }
                catch (ObjectDisposedException)
                {
                    // Released meanwhile.
                }
            }
            return all;
        }

        protected override bool ReleaseHandle()
        {
            Api.svdq_context_release((svdq_context*)handle);
            return true;
        }
    }
}
