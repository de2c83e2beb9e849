using UnityEditor;

namespace Svdq.Editor
{
    /// <summary>
    /// The editor keeps native libraries through a domain reload: jobs have to end before their handles do.
    /// </summary>
    [InitializeOnLoad]
    static class ShutdownOnReload
    {
        const int Timeout = 10_000;

        static ShutdownOnReload()
        {
            AssemblyReloadEvents.beforeAssemblyReload += Shutdown;
            EditorApplication.quitting += Shutdown;
        }

        static void Shutdown()
        {
            if (!Context.ShutdownAll(Timeout))
                UnityEngine.Debug.LogWarning("svdq: a job still runs after " + Timeout + " ms");
        }
    }
}
