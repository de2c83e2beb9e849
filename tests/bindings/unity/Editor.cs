// The parts of the package that need Unity, over stubs: its tests, its sample, its editor script.
using System;
using System.Collections;
using System.Reflection;
using System.Runtime.CompilerServices;
using NUnit.Framework;
using Svdq;
using UnityEngine;
using UnityEngine.TestTools;

static class EditorRun
{
    static void Main()
    {
        var fixture = typeof(Svdq.Tests.TextureTests);
        foreach (var method in fixture.GetMethods())
        {
            if (!Has<TestAttribute>(method) && !Has<UnityTestAttribute>(method)) continue;
            var instance = Activator.CreateInstance(fixture);
            Call<SetUpAttribute>(instance);
            var frames = method.Invoke(instance, null) as IEnumerator;
            while (frames != null && frames.MoveNext()) System.Threading.Thread.Sleep(1);
            Call<TearDownAttribute>(instance);
            Console.WriteLine(method.Name + " passed");
        }
        Reload("a reload", UnityEditor.AssemblyReloadEvents.Reload);
        Reload("the editor's end", UnityEditor.EditorApplication.Quit);
        Reload("the game's end", Application.Quit);
    }

    static bool Has<T>(MethodInfo method) where T : Attribute => method.GetCustomAttribute<T>() != null;

    static void Call<T>(object instance) where T : Attribute
    {
        foreach (var method in instance.GetType().GetMethods())
            if (Has<T>(method)) method.Invoke(instance, null);
    }

    /// <summary>What Unity calls at the start, then `end` while a job runs.</summary>
    static void Reload(string name, Action end)
    {
        var editor = Assembly.Load("Svdq.Editor").GetType("Svdq.Editor.ShutdownOnReload");
        RuntimeHelpers.RunClassConstructor(editor.TypeHandle);
        foreach (var method in typeof(UnityExtensions).GetMethods(BindingFlags.Static | BindingFlags.NonPublic))
            if (Has<RuntimeInitializeOnLoadMethodAttribute>(method)) method.Invoke(null, null);
        using (var context = new Context(new ContextOptions { Device = DeviceSelect.Cpu }))
        using (var model = Model.Load(context, new ModelOptions(Environment.GetEnvironmentVariable("SVDQ_TEST_MODEL"))))
        using (var job = model.Submit(new GenerateOptions { Prompt = "a", Steps = 1000 }))
        {
            end();
            if (!job.Poll().Ended) throw new Exception("a job outlives " + name);
            context.PumpLog();
            if (!Debug.Lines.Exists(line => line.StartsWith("log libsvdq "))) throw new Exception("an empty console");
        }
        Console.WriteLine("nothing outlives " + name);
    }
}
