// The library and its headers, as bindings/unreal/package.sh puts them here.

using System.IO;
using UnrealBuildTool;

public class SVDQLibrary : ModuleRules
{
	public SVDQLibrary(ReadOnlyTargetRules Target) : base(Target)
	{
		Type = ModuleType.External;
		PublicSystemIncludePaths.Add(Path.Combine(ModuleDirectory, "include"));

		if (Target.Platform == UnrealTargetPlatform.Win64)
		{
			// Loaded by FSVDQModule: a game in which it is missing starts all the same.
			PublicAdditionalLibraries.Add(Path.Combine(ModuleDirectory, "lib", "Win64", "svdq.dll.lib"));
			PublicDelayLoadDLLs.Add("svdq.dll");
			RuntimeDependencies.Add("$(BinaryOutputDir)/svdq.dll", Path.Combine(ModuleDirectory, "bin", "Win64", "svdq.dll"));
		}
		else if (Target.Platform == UnrealTargetPlatform.Linux)
		{
			// Linked by the name without a version; found at run time by its soname.
			string Folder = Path.Combine(ModuleDirectory, "lib", "Linux");
			PublicAdditionalLibraries.Add(Path.Combine(Folder, "libsvdq.so"));
			PublicRuntimeLibraryPaths.Add(Folder);
			RuntimeDependencies.Add(Path.Combine(Folder, "libsvdq.so"));
			RuntimeDependencies.Add(Path.Combine(Folder, "libsvdq.so.0"));
		}
		else
		{
			throw new BuildException("libsvdq is built for Win64 and Linux, not for {0}", Target.Platform);
		}
	}
}
