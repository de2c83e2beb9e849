// The numbers and the structs of the raw bindings, in the words of tests/c_api/abi.txt.
using System;
using System.Collections.Generic;
using System.Linq;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Text.RegularExpressions;
using Svdq;
using Svdq.Native;

static class Layouts
{
    static readonly Dictionary<string, long> Constants =
        typeof(Api).GetFields(BindingFlags.Static | BindingFlags.NonPublic)
            .Where(field => field.Name.StartsWith("SVDQ_"))
            .ToDictionary(field => field.Name, field => Convert.ToInt64(field.GetValue(null)));

    static void Main()
    {
        Covers<DeviceSelect>("SVDQ_DEVICE_");
        Covers<GpuPriority>("SVDQ_PRIORITY_");
        Covers<LogLevel>("SVDQ_LOG_");
        Covers<Profile>("SVDQ_PROFILE_");
        Covers<ModelFamily>("SVDQ_FAMILY_");
        Covers<Precision>("SVDQ_PRECISION_");
        Covers<PixelFormat>("SVDQ_FORMAT_");
        Covers<JobState>("SVDQ_JOB_", "SVDQ_JOB_IMAGE", "SVDQ_JOB_PREVIEW");
        Covers<JobPhase>("SVDQ_PHASE_");
        foreach (var constant in Constants) Console.WriteLine(constant.Key + " " + constant.Value);
        // csbindgen leaves out what is negative.
        foreach (var result in Enum.GetValues(typeof(Result)).Cast<Result>().Where(result => result < 0))
        {
            var name = Regex.Replace(result.ToString(), "(?<!^)[A-Z]", letter => "_" + letter).ToUpperInvariant();
            Console.WriteLine("SVDQ_ERR_" + name + " " + (int)result);
        }
        foreach (var type in typeof(Api).Assembly.GetTypes())
            if (type.Namespace == typeof(Api).Namespace && type.IsValueType && !type.IsNested) Struct(type);
    }

    /// <summary>The enum that scripts see has a name for every constant, and for nothing else but zero.</summary>
    static void Covers<T>(string prefix, params string[] others)
    {
        var zero = new[] { 0L };
        var names = Constants.Keys.Where(name => name.StartsWith(prefix) && !others.Contains(name)).ToArray();
        var expected = names.Select(name => Constants[name]).Union(zero).OrderBy(value => value);
        var values = Enum.GetValues(typeof(T)).Cast<T>().Select(value => Convert.ToInt64(value)).Union(zero);
        if (names.Length == 0 || !expected.SequenceEqual(values.OrderBy(value => value)))
            throw new Exception(typeof(T) + " is not " + prefix + "*");
    }

    static void Struct(Type type)
    {
        var fields = type.GetFields(BindingFlags.Instance | BindingFlags.Public);
        // The handles.
        if (fields.Length == 0) return;
        Console.WriteLine(type.Name + " " + Marshal.SizeOf(type));
        foreach (var field in fields)
        {
            var blittable = field.FieldType.IsPointer || field.FieldType.IsValueType && field.FieldType != typeof(bool);
            if (!blittable) throw new Exception(type.Name + "." + field.Name + " is not blittable");
            var size = field.FieldType.IsPointer ? IntPtr.Size : Marshal.SizeOf(field.FieldType);
            Console.WriteLine(type.Name + "." + field.Name + " " + Marshal.OffsetOf(type, field.Name) + " " + size);
        }
    }
}
