// What compiled ahead of time cannot do: Callbacks.exe plain fails under full AOT, Callbacks.exe marked does not.
using System;
using System.Runtime.InteropServices;

[AttributeUsage(AttributeTargets.Method)]
sealed class MonoPInvokeCallbackAttribute : Attribute
{
    public MonoPInvokeCallbackAttribute(Type type) { }
}

static unsafe class Callbacks
{
    [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
    delegate int Compare(void* left, void* right);

    [DllImport("libc", CallingConvention = CallingConvention.Cdecl)]
    static extern void qsort(void* array, UIntPtr count, UIntPtr size, IntPtr compare);

    static int Plain(void* left, void* right) => *(int*)left - *(int*)right;

    [MonoPInvokeCallback(typeof(Compare))]
    static int Marked(void* left, void* right) => *(int*)left - *(int*)right;

    static void Main(string[] arguments)
    {
        if (arguments[0] == "platform")
        {
            // What has to be compiled too.
            Console.WriteLine(typeof(object).Assembly.Location);
            return;
        }
        Compare compare = arguments[0] == "plain" ? (Compare)Plain : Marked;
        var values = new[] { 3, 1, 2 };
        fixed (int* array = values)
            qsort(array, (UIntPtr)3u, (UIntPtr)4u, Marshal.GetFunctionPointerForDelegate(compare));
        GC.KeepAlive(compare);
        Console.WriteLine(string.Join(" ", values));
    }
}
