// What UnrealBuildTool gives to Build.cs files, as far as the plugin's use it; and a program that says what a
// module asks for on a platform: Rules.exe MODULE FOLDER PLATFORM. "Module" stands for the folder.

using System;
using System.Collections.Generic;
using System.Reflection;

namespace UnrealBuildTool
{
	public struct UnrealTargetPlatform
	{
		string Name;
		public static readonly UnrealTargetPlatform Win64 = new UnrealTargetPlatform { Name = "Win64" };
		public static readonly UnrealTargetPlatform Linux = new UnrealTargetPlatform { Name = "Linux" };
		public static readonly UnrealTargetPlatform Mac = new UnrealTargetPlatform { Name = "Mac" };
		public static bool operator ==(UnrealTargetPlatform A, UnrealTargetPlatform B) { return A.Name == B.Name; }
		public static bool operator !=(UnrealTargetPlatform A, UnrealTargetPlatform B) { return A.Name != B.Name; }
		public override bool Equals(object Other) { return Other is UnrealTargetPlatform && this == (UnrealTargetPlatform)Other; }
		public override int GetHashCode() { return Name.GetHashCode(); }
		public override string ToString() { return Name; }
	}

	public class ReadOnlyTargetRules
	{
		public UnrealTargetPlatform Platform;
	}

	public class BuildException : Exception
	{
		public BuildException(string Format, params object[] Arguments) : base(string.Format(Format, Arguments)) {}
	}

	public class RuntimeDependencyList
	{
		public List<string> Files = new List<string>();
		public void Add(string File) { Files.Add(File); }
		public void Add(string Target, string Source) { Files.Add(Source); }
	}

	public class ModuleRules
	{
		public enum ModuleType { CPlusPlus, External }
		public enum PCHUsageMode { UseExplicitOrSharedPCHs }

		// Set before the constructors of modules run, as UnrealBuildTool does it.
		public static string Folder;

		public ModuleType Type = ModuleType.CPlusPlus;
		public PCHUsageMode PCHUsage;
		public string ModuleDirectory { get { return Folder; } }
		public List<string> PublicSystemIncludePaths = new List<string>();
		public List<string> PublicAdditionalLibraries = new List<string>();
		public List<string> PublicDelayLoadDLLs = new List<string>();
		public List<string> PublicRuntimeLibraryPaths = new List<string>();
		public List<string> PublicDependencyModuleNames = new List<string>();
		public List<string> PrivateDependencyModuleNames = new List<string>();
		public List<string> PrivateIncludePathModuleNames = new List<string>();
		public List<string> ThirdParty = new List<string>();
		public RuntimeDependencyList RuntimeDependencies = new RuntimeDependencyList();
		public ModuleRules(ReadOnlyTargetRules Target) {}
		public void AddEngineThirdPartyPrivateStaticDependencies(ReadOnlyTargetRules Target, params string[] Names) { ThirdParty.AddRange(Names); }
	}
}

static class Program
{
	static void Say(string What, IEnumerable<string> Lines)
	{
		foreach (string Line in Lines)
		{
			Console.WriteLine(What + " " + Line);
		}
	}

	static int Main(string[] Arguments)
	{
		UnrealBuildTool.ModuleRules.Folder = Arguments[1];
		object Platform = typeof(UnrealBuildTool.UnrealTargetPlatform).GetField(Arguments[2]).GetValue(null);
		var Target = new UnrealBuildTool.ReadOnlyTargetRules { Platform = (UnrealBuildTool.UnrealTargetPlatform)Platform };
		UnrealBuildTool.ModuleRules Rules;
		try
		{
			Rules = (UnrealBuildTool.ModuleRules)Activator.CreateInstance(Type.GetType(Arguments[0]), Target);
		}
		catch (TargetInvocationException Thrown)
		{
			Console.WriteLine("refused " + Thrown.InnerException.Message);
			return 0;
		}
		Console.WriteLine("type " + Rules.Type);
		Say("include", Rules.PublicSystemIncludePaths);
		Say("link", Rules.PublicAdditionalLibraries);
		Say("delay", Rules.PublicDelayLoadDLLs);
		Say("rpath", Rules.PublicRuntimeLibraryPaths);
		Say("ship", Rules.RuntimeDependencies.Files);
		Say("module", Rules.PublicDependencyModuleNames);
		Say("module", Rules.PrivateDependencyModuleNames);
		Say("headers", Rules.PrivateIncludePathModuleNames);
		Say("engine", Rules.ThirdParty);
		return 0;
	}
}
