// The package's wrappers against the library: Cases.exe CASE ... runs the cases with these names.
using System;
using System.Collections.Generic;
using System.IO;
using System.Runtime.CompilerServices;
using System.Threading;
using System.Threading.Tasks;
using Svdq;

static class Cases
{
    /// <summary>A folder with the demo model, and what the other side of the tests put there.</summary>
    static readonly string Folder = Environment.GetEnvironmentVariable("CASES_FOLDER");
    static readonly string Demo = Path.Combine(Folder, "demo");
    static readonly string LoraFile = Path.Combine(Folder, "style.safetensors");

    static readonly ImageLayout TopDown = new ImageLayout(PixelFormat.Rgba8, RowOrder.TopDown);

    static int Main(string[] names)
    {
        var cases = new Dictionary<string, Action>
        {
            { "picture", Picture },
            { "layouts_of_pixels", LayoutsOfPixels },
            { "async", () => Async().GetAwaiter().GetResult() },
            { "main_thread", MainThread },
            { "poll", Poll },
            { "cancel", () => Cancel().GetAwaiter().GetResult() },
            { "errors", Errors },
            { "failed_job", () => FailedJob().GetAwaiter().GetResult() },
            { "path", NonAsciiPath },
            { "lora", Loras },
            { "prompt", Prompts },
            { "init", Init },
            { "cost", Cost },
            { "context", Contexts },
            { "sources", () => Sources().GetAwaiter().GetResult() },
            { "broken_stream", () => BrokenStream().GetAwaiter().GetResult() },
            { "dropped_load", DroppedLoad },
            { "wrong_order", WrongOrder },
            { "finalizers", Finalizers },
            { "shutdown", Shutdown },
            { "reload", Reload },
            { "exit", Exit },
        };
        foreach (var name in names)
        {
            cases[name]();
            Console.WriteLine(name + " passed");
        }
        return 0;
    }

    static Context Cpu() => new Context(new ContextOptions { Device = DeviceSelect.Cpu, Threads = 2 });

    static Model Load()
    {
        using (var context = Cpu()) return Model.Load(context, new ModelOptions(Demo));
    }

    static GenerateOptions Potion() =>
        new GenerateOptions { Prompt = "pixel art blue potion", Seed = 42, Steps = 4 };

    /// <summary>A job of many seconds.</summary>
    static GenerateOptions Long() => new GenerateOptions { Prompt = "pixel art red potion", Steps = 1000 };

    static byte[] Make(Model model, GenerateOptions options, ImageLayout layout)
    {
        var pixels = new byte[layout.Bytes(model.WidthOf(options), model.HeightOf(options))];
        model.Generate(options, pixels, layout);
        return pixels;
    }

    static byte[] Make(Model model) => Make(model, Potion(), TopDown);

    static void Check(bool condition, string what = "", [CallerLineNumber] int line = 0)
    {
        if (!condition) throw new Exception("line " + line + " " + what);
    }

    static void Equal(byte[] left, byte[] right, [CallerLineNumber] int line = 0)
    {
        Check(left.Length == right.Length, left.Length + " and " + right.Length, line);
        for (var i = 0; i < left.Length; i++) Check(left[i] == right[i], "byte " + i, line);
    }

    static bool Same(byte[] left, byte[] right) => Convert.ToBase64String(left) == Convert.ToBase64String(right);

    static T Throws<T>(Action action, [CallerLineNumber] int line = 0) where T : Exception
    {
        try
        {
            action();
        }
        catch (T exception)
        {
            return exception;
        }
        throw new Exception("line " + line + ": no " + typeof(T));
    }

    static SvdqException Fails(Result result, Action action, [CallerLineNumber] int line = 0)
    {
        var exception = Throws<SvdqException>(action, line);
        Check(exception.Result == result, exception.ToString(), line);
        return exception;
    }

    static void Picture()
    {
        using (var model = Load()) File.WriteAllBytes(Path.Combine(Folder, "picture.rgba"), Make(model));
    }

    static unsafe void LayoutsOfPixels()
    {
        using (var model = Load())
        {
            var plain = Make(model);
            var (width, height) = (model.WidthOf(Potion()), model.HeightOf(Potion()));
            Check(width == 128 && height == 128 && plain.Length == width * height * 4);
            foreach (var format in new[] { PixelFormat.Rgba8, PixelFormat.Bgra8, PixelFormat.Rgb8 })
            {
                var size = format == PixelFormat.Rgb8 ? 3 : 4;
                var layout = new ImageLayout(format, RowOrder.BottomUp, 600);
                var pixels = new byte[layout.Bytes(width, height)];
                Check(pixels.Length == 600 * (height - 1) + size * width);
                fixed (byte* to = pixels) model.Generate(Potion(), (IntPtr)to, pixels.Length, layout);
                for (var y = 0; y < height; y++)
                    for (var x = 0; x < width; x++)
                    {
                        var (from, at) = ((y * width + x) * 4, (height - 1 - y) * 600 + x * size);
                        var red = format == PixelFormat.Bgra8 ? 2 : 0;
                        Check(pixels[at + red] == plain[from] && pixels[at + 1] == plain[from + 1]);
                        Check(pixels[at + 2 - red] == plain[from + 2] && (size == 3 || pixels[at + 3] == 255));
                    }
            }
            // The default is a texture's.
            Check(default(ImageLayout).Format == PixelFormat.Rgba8 && default(ImageLayout).Rows == RowOrder.BottomUp);
        }
    }

    /// <summary>Keeps what was reported, at once and in order.</summary>
    sealed class Reports : IProgress<JobStatus>
    {
        public readonly List<JobStatus> All = new List<JobStatus>();
        public Action<JobStatus> Each = status => { };

        public void Report(JobStatus status)
        {
            if (All.Count > 0) Check(status.Fraction >= All[All.Count - 1].Fraction, "fraction shrinks");
            All.Add(status);
            Each(status);
        }
    }

    static async Task Async()
    {
        using (var context = Cpu())
        {
            var loading = new Reports();
            using (var model = await Model.LoadAsync(context, new ModelOptions(Demo), loading))
            {
                Check(loading.All[loading.All.Count - 1].Fraction == 1);
                var reports = new Reports();
                var options = Potion();
                var task = model.GenerateAsync(options, reports, CancellationToken.None, TopDown);
                // The job has copied them.
                options.Prompt = "something else";
                options.Steps = 1;
                Equal(Make(model), await task);
                var last = reports.All[reports.All.Count - 1];
                Check(last.State == JobState.Done && last.Result == Result.Ok && last.Fraction == 1);
                Check(last.Step == 4 && last.Steps == 4 && last.Seed == 42 && last.DenoiseMilliseconds > 0);
                Check(reports.All.Count > 1, "one report");
            }
        }
    }

    /// <summary>Continues where it is pumped, as Unity's does once a frame.</summary>
    sealed class Frames : SynchronizationContext
    {
        readonly Queue<Action> queue = new Queue<Action>();

        public override void Post(SendOrPostCallback callback, object state)
        {
            lock (queue) queue.Enqueue(() => callback(state));
        }

        public void Run()
        {
            while (true)
            {
                Action next;
                lock (queue)
                {
                    if (queue.Count == 0) return;
                    next = queue.Dequeue();
                }
                next();
            }
        }
    }

    static void MainThread()
    {
        var frames = new Frames();
        var main = Thread.CurrentThread;
        SynchronizationContext.SetSynchronizationContext(frames);
        var reports = 0;
        var progress = new Progress<JobStatus>(status =>
        {
            Check(Thread.CurrentThread == main);
            reports++;
        });
        Func<Task> script = async () =>
        {
            using (var context = Cpu())
            using (var model = await Model.LoadAsync(context, new ModelOptions(Demo), progress))
            {
                Check(Thread.CurrentThread == main);
                await model.GenerateAsync(Potion(), progress);
                Check(Thread.CurrentThread == main);
            }
        };
        var task = script();
        Check(!task.IsCompleted);
        for (; !task.IsCompleted; Thread.Sleep(1)) frames.Run();
        task.Wait0();
        frames.Run();
        Check(reports > 2);
        SynchronizationContext.SetSynchronizationContext(null);
    }

    static void Poll()
    {
        using (var model = Load())
        {
            var options = Potion();
            options.PreviewEvery = 1;
            using (var job = model.Submit(options))
            {
                var serial = 0u;
                byte[] preview = null;
                Check(!job.Wait(0) || job.Poll().Ended);
                // Once a frame: without garbage.
                var collections = GC.CollectionCount(0);
                for (var i = 0; i < 200_000; i++) job.Poll();
                Check(GC.CollectionCount(0) - collections < 2, "polling makes garbage");
                while (true)
                {
                    var status = job.Poll();
                    if (status.PreviewSerial != serial)
                    {
                        Check(status.PreviewSerial > serial && status.PreviewWidth > 0 && status.PreviewHeight > 0);
                        serial = status.PreviewSerial;
                        preview = new byte[TopDown.Bytes(status.PreviewWidth, status.PreviewHeight)];
                        job.ReadPreview(preview, TopDown);
                    }
                    if (status.Ended) break;
                    Thread.Sleep(1);
                }
                job.ThrowIfFailed();
                Check(job.Error == "" && job.Wait());
                Check(preview != null && Array.Exists(preview, value => value != preview[0]), "an empty preview");
                var pixels = new byte[TopDown.Bytes(job.Width, job.Height)];
                job.ReadImage(pixels, TopDown);
                Equal(Make(model), pixels);
            }
            using (var job = model.Submit(Potion()))
            {
                Fails(Result.Busy, () => job.ReadPreview(new byte[1 << 16]));
                job.Wait();
            }
        }
    }

    static async Task Cancel()
    {
        using (var model = Load())
        {
            var expected = Make(model);
            using (var source = new CancellationTokenSource())
            {
                var reports = new Reports();
                reports.Each = status =>
                {
                    if (status.Step > 0) source.Cancel();
                };
                try
                {
                    await model.GenerateAsync(Long(), reports, source.Token);
                    Check(false, "not cancelled");
                }
                catch (OperationCanceledException)
                {
                    Check(reports.All[reports.All.Count - 1].State == JobState.Cancelled);
                }
                Throws<OperationCanceledException>(() => model.GenerateAsync(Long(), null, source.Token).Wait0());
            }
            using (var job = model.Submit(Long()))
            {
                Fails(Result.Busy, () => job.ReadImage(new byte[1 << 16]));
                job.Cancel();
                job.Cancel();
                Check(job.Wait(10_000) && job.Poll().State == JobState.Cancelled);
                Check(job.Error != "", "no reason");
                Fails(Result.Cancelled, job.ThrowIfFailed);
                Fails(Result.Cancelled, () => job.ReadImage(new byte[1 << 16]));
            }
            Equal(expected, Make(model));
        }
        using (var context = Cpu())
        using (var source = new CancellationTokenSource())
        {
            var task = Model.LoadAsync(context, new ModelOptions(Demo), null, source.Token);
            source.Cancel();
            try
            {
                (await task).Dispose();
            }
            catch (OperationCanceledException)
            {
            }
        }
    }

    /// <summary>Waits, and throws what was thrown.</summary>
    static void Wait0(this Task task) => task.GetAwaiter().GetResult();

    static void Errors()
    {
        using (var context = Cpu())
        using (var model = Load())
        {
            var error = Fails(Result.NotFound, () => Model.Load(context, new ModelOptions("/nirgends/Füße/画像")));
            Check(error.Message.StartsWith("SVDQ_ERR_NOT_FOUND: /nirgends/Füße/画像"), error.Message);
            // A text longer than the first buffer.
            var far = "/" + string.Join("/", new string('ä', 100), new string('ö', 100), new string('ü', 100));
            error = Fails(Result.NotFound, () => Model.Load(context, new ModelOptions(far)));
            Check(error.Message.Contains(far), error.Message);
            Fails(Result.InvalidArgument, () => Model.Load(context, new ModelOptions()));
            Fails(Result.InvalidArgument, () => model.Generate(new GenerateOptions(), new byte[1 << 16]));
            Fails(Result.BufferTooSmall, () => model.Generate(Potion(), new byte[100]));
            Fails(Result.InvalidArgument, () => model.Submit(new GenerateOptions { Prompt = "a", Width = 7 }));
            Fails(Result.NotFound, () => new Lora(model, "/nirgends.safetensors"));
            Fails(Result.InvalidArgument, () => new Context(new ContextOptions { Device = (DeviceSelect)77 }));
            Throws<ArgumentException>(() => new Prompt(model, "a\0b"));
            Throws<ArgumentException>(() => new Prompt(model, "half \ud83d a pair"));
            Throws<ArgumentException>(() => new Context(new ContextOptions { DeviceId = new byte[17] }));
            Throws<ArgumentNullException>(() => new Prompt(model, null));
            Throws<ArgumentNullException>(() => model.Generate(Potion(), (byte[])null));
            Throws<ArgumentNullException>(() => new ModelOptions((string)null));
            Throws<ArgumentException>(() => Model.Load(context, new ModelOptions((Source)null)));
            Throws<OverflowException>(() => model.Generate(new GenerateOptions { Prompt = "", Steps = -1 }, new byte[1]));
            context.Dispose();
            context.Dispose();
            Throws<ObjectDisposedException>(() => Model.Load(context, new ModelOptions(Demo)));
            model.Dispose();
            Throws<ObjectDisposedException>(() => model.Info.ToString());
            Throws<ObjectDisposedException>(() => model.Submit(Potion()));
        }
    }

    static async Task FailedJob()
    {
        using (var context = Cpu())
        {
            var options = new ModelOptions("/nirgends/画像");
            using (var job = Model.SubmitLoad(context, options))
            {
                Check(job.Wait() && job.Poll().State == JobState.Failed);
                Check(job.Error.StartsWith("/nirgends/画像"), job.Error);
                Fails(Result.NotFound, job.ThrowIfFailed);
                Fails(Result.NotFound, () => job.TakeModel());
            }
            try
            {
                await Model.LoadAsync(context, options);
                Check(false, "loaded");
            }
            catch (SvdqException error)
            {
                Check(error.Message.StartsWith("SVDQ_ERR_NOT_FOUND: /nirgends/画像"), error.Message);
            }
            using (var job = Model.SubmitLoad(context, new ModelOptions(Demo)))
            {
                Check(job.Wait());
                job.TakeModel().Dispose();
                Fails(Result.InvalidArgument, () => job.TakeModel());
            }
        }
    }

    static void NonAsciiPath()
    {
        using (var context = Cpu())
        using (var model = Model.Load(context, new ModelOptions(Path.Combine(Folder, "Modèle 模型"))))
        using (var same = Load())
            Equal(Make(model), Make(same));
    }

    static void Loras()
    {
        using (var model = Load())
        {
            var expected = Make(model);
            var options = Potion();
            using (var lora = new Lora(model, LoraFile))
            {
                Check(lora.Info.Rank > 0 && lora.Info.Modules > 0 && model.Info.MaxLoras > 0);
                options.Loras = new[] { new LoraUse(lora, 0.5f) };
                var half = Make(model, options, TopDown);
                options.Loras = new[] { new LoraUse(lora) };
                var whole = Make(model, options, TopDown);
                File.WriteAllBytes(Path.Combine(Folder, "lora.rgba"), whole);
                Check(!Same(expected, whole) && !Same(half, whole));
                // A job keeps what it uses.
                var job = model.Submit(options);
                lora.Dispose();
                var pixels = new byte[whole.Length];
                job.Wait();
                job.ReadImage(pixels, TopDown);
                Equal(whole, pixels);
                Throws<ObjectDisposedException>(() => Make(model, options, TopDown));
            }
            Equal(expected, Make(model));
        }
    }

    static void Prompts()
    {
        using (var model = Load())
        {
            var options = Potion();
            using (var prompt = new Prompt(model, options.Prompt))
            {
                options.Prompt = null;
                options.Encoded = prompt;
                Equal(Make(model), Make(model, options, TopDown));
                using (var job = model.Submit(options))
                {
                    prompt.Dispose();
                    job.Wait();
                    job.ThrowIfFailed();
                }
            }
        }
    }

    static void Init()
    {
        using (var context = Cpu())
        using (var model = Model.Load(context, new ModelOptions(Demo) { ImageInput = true }))
        {
            Check(model.Info.ImageInput);
            var plain = Make(model);
            var options = Potion();
            options.Seed = 1;
            options.Init = new InitImage { Pixels = plain, Width = 128, Height = 128, Layout = TopDown };
            options.InitStrength = 0.5f;
            var near = Make(model, options, TopDown);
            options.InitStrength = 1;
            var far = Make(model, options, TopDown);
            Check(Distance(plain, near) < Distance(plain, far), Distance(plain, near) + " " + Distance(plain, far));
            options.Init.Pixels = new byte[100];
            Throws<SvdqException>(() => Make(model, options, TopDown));
        }
    }

    static double Distance(byte[] left, byte[] right)
    {
        var sum = 0.0;
        for (var i = 0; i < left.Length; i++) sum += Math.Pow(left[i] - right[i], 2);
        return sum;
    }

    static void Cost()
    {
        using (var model = Load())
        {
            var cost = model.Check(Potion());
            Check(cost.Fits && cost.DeviceBytes == 0 && cost.HostBytes > 0 && cost.ImageBytes == 128 * 128 * 4);
            Fails(Result.InvalidArgument, () => model.Check(new GenerateOptions { Prompt = "a", Height = 9 }));
            var (info, inspected) = (model.Info, Model.Inspect(new ModelOptions(Demo)));
            Check(info.Precision == inspected.Precision && info.Rank == inspected.Rank);
            Check(info.DefaultSteps == inspected.DefaultSteps && info.SizeMultiple == inspected.SizeMultiple);
            Check(info.StoredBytes > 0 && info.HostBytes > 0 && inspected.HostBytes == 0, info.StoredBytes + " " + info.HostBytes + " " + inspected.HostBytes);
        }
    }

    static void Contexts()
    {
        Check(Context.LibraryVersion.Split('.').Length == 3 && Context.BuildInfo.Contains(Context.LibraryVersion));
        using (var context = Cpu())
        using (var model = Model.Load(context, new ModelOptions(Demo)))
        {
            var memory = context.Memory;
            Check(memory.HostUsed > 0 && memory.HostPeak >= memory.HostUsed && memory.DeviceUsed == 0);
            context.SetMemoryBudget(1 << 30);
            // A line longer than the first buffer.
            var far = Folder + new string('/', 600) + "Modèle 模型";
            Model.Load(context, new ModelOptions(far)).Dispose();
            var lines = new List<string>();
            while (context.TryReadLog(out var level, out var line)) lines.Add(level + " " + line);
            Check(lines.Exists(text => text == "Info libsvdq " + Context.LibraryVersion + " on the CPU"));
            Check(lines.Exists(text => text.StartsWith("Info " + far)), string.Join("\n", lines));
            Check(!context.TryReadLog(out _, out _));
        }
        try
        {
            foreach (var device in Device.All())
                Check(device.Name != "" && device.Uuid.Length == 16 && device.MemoryTotal > 0);
        }
        catch (SvdqException exception)
        {
            Check(exception.Result == Result.NoDriver || exception.Result == Result.DriverTooOld, exception.Message);
        }
    }

    /// <summary>The demo model's files, by their names in the folder.</summary>
    static ModelOptions Files(Func<string, string, Source> source)
    {
        var options = new ModelOptions();
        foreach (var file in Directory.GetFiles(Demo, "*", SearchOption.AllDirectories))
        {
            var name = file.Substring(Demo.Length + 1);
            var folder = Path.GetDirectoryName(name);
            var read = name.EndsWith(".json") || name.EndsWith(".safetensors");
            if (read && folder != "lora") options.Sources.Add(source(file, name));
        }
        return options;
    }

    static async Task Sources()
    {
        byte[] expected;
        using (var model = Load()) expected = Make(model);
        using (var context = Cpu())
        {
            var memory = Files((file, name) => Source.Memory(File.ReadAllBytes(file), name));
            using (var model = Model.Load(context, memory)) Equal(expected, Make(model));
            using (var model = await Model.LoadAsync(context, memory)) Equal(expected, Make(model));
            var streams = Files((file, name) => Source.Stream(File.OpenRead(file), name));
            using (var model = Model.Load(context, streams)) Equal(expected, Make(model));
            using (var model = await Model.LoadAsync(context, streams))
            {
                Equal(expected, Make(model));
                var options = Potion();
                using (var lora = new Lora(model, Source.Stream(File.OpenRead(LoraFile))))
                {
                    options.Loras = new[] { new LoraUse(lora) };
                    Check(!Same(expected, Make(model, options, TopDown)));
                }
            }
        }
    }

    sealed class Broken : MemoryStream
    {
        public Broken(byte[] bytes) : base(bytes) { }

        public override int Read(byte[] buffer, int offset, int count) =>
            throw new IOException("the pak is damaged");
    }

    static async Task BrokenStream()
    {
        using (var context = Cpu())
        {
            var streams = Files((file, name) => name.EndsWith(".safetensors")
                ? Source.Stream(new Broken(File.ReadAllBytes(file)), name)
                : Source.Path(file));
            streams = Files((file, name) => Source.Stream(new Broken(File.ReadAllBytes(file)), name));
            var error = Fails(Result.Io, () => Model.Load(context, streams));
            Check(error.InnerException is IOException);
            try
            {
                await Model.LoadAsync(context, streams);
                Check(false, "loaded");
            }
            catch (SvdqException exception)
            {
                Check(exception.Result == Result.Io && exception.InnerException is IOException);
            }
        }
    }

    static void DroppedLoad()
    {
        using (var context = Cpu())
            for (var i = 0; i < 10; i++)
            {
                var streams = Files((file, name) => Source.Stream(File.OpenRead(file), name));
                var job = Model.SubmitLoad(context, streams);
                if (i % 3 == 0) job.Dispose();
                job = null;
                Collect();
            }
    }

    static void WrongOrder()
    {
        for (var order = 0; order < 6; order++)
        {
            var context = Cpu();
            var model = Model.Load(context, new ModelOptions(Demo));
            var lora = new Lora(model, LoraFile);
            var prompt = new Prompt(model, "a");
            var job = model.Submit(new GenerateOptions { Encoded = prompt, Loras = new[] { new LoraUse(lora) } });
            var handles = new Handle[] { context, model, lora, prompt, job };
            for (var i = 0; i < handles.Length; i++)
            {
                var handle = handles[(i * (order % 2 + 1) + order) % handles.Length];
                handle.Dispose();
                handle.Dispose();
                Check(handle.IsClosed);
            }
        }
    }

    static void Collect()
    {
        for (var i = 0; i < 3; i++)
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
        }
    }

    static int dropped;

    sealed class Witness
    {
        ~Witness()
        {
            Interlocked.Increment(ref dropped);
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    static void Drop()
    {
        var context = Cpu();
        var model = Model.Load(context, new ModelOptions(Demo));
        var lora = new Lora(model, LoraFile);
        var prompt = new Prompt(model, "a");
        model.Submit(new GenerateOptions { Encoded = prompt, Loras = new[] { new LoraUse(lora) }, Steps = 1000 });
        Model.SubmitLoad(context, new ModelOptions(Demo));
        new Witness();
    }

    static void Finalizers()
    {
        for (var i = 0; i < 5; i++)
        {
            // A thread of its own: nothing of its stack keeps them alive.
            var thread = new Thread(Drop);
            thread.Start();
            thread.Join();
            Collect();
        }
        Check(dropped > 0, "nothing was collected");
        using (var model = Load()) Make(model);
    }

    static void Shutdown()
    {
        using (var context = Cpu())
        using (var model = Model.Load(context, new ModelOptions(Demo)))
        {
            var job = model.Submit(Long());
            while (job.Poll().State != JobState.Running) Thread.Sleep(1);
            Check(context.Shutdown(10_000), "timeout");
            Check(job.Poll().Ended && context.Shutdown(0));
            Fails(Result.ShuttingDown, () => model.Submit(Potion()));
            Fails(Result.ShuttingDown, () => Make(model));
            Check(Context.ShutdownAll(10_000));
        }
        using (var model = Load()) Make(model);
    }

    /// <summary>In a domain of its own, which goes while everything runs.</summary>
    static void Reload()
    {
        for (var i = 0; i < 3; i++)
        {
            var domain = AppDomain.CreateDomain("scripts");
            domain.DoCallBack(LeaveRunning);
            AppDomain.Unload(domain);
        }
        using (var model = Load()) Make(model);
    }

    static readonly List<object> Alive = new List<object>();

    static void LeaveRunning()
    {
        var context = Cpu();
        var streams = Files((file, name) => Source.Stream(File.OpenRead(file), name));
        var model = Model.Load(context, streams);
        var job = model.Submit(Long());
        while (job.Poll().State != JobState.Running) Thread.Sleep(1);
        Alive.AddRange(new object[] { context, model, job, Model.SubmitLoad(context, streams) });
    }

    /// <summary>The process goes while a job runs.</summary>
    static void Exit() => LeaveRunning();
}
