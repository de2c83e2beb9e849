#pragma once

#include "CoreMinimal.h"

struct FPaths
{
	/** Relative to the program's folder, as in the engine. */
	static FString ProjectDir() { return FString(TEXT("../../project")); }
	static FString ConvertRelativePathToFull(const FString& Path)
	{
		check(Path.Text.substr(0, 6) == u"../../");
		return FString(Path.Text.c_str() + 5);
	}
	static FString ConvertRelativePathToFull(const FString& Base, const FString& Path)
	{
		return Path.Text[0] == u'/' ? Path : Combine(Base, *Path);
	}
	static FString Combine(const FString& A, const TCHAR* B)
	{
		FString Made = A;
		Made.Text += u'/';
		Made.Text += B;
		return Made;
	}
};
