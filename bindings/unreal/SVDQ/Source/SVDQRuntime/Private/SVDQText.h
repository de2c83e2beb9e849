// Texts and paths of the engine and of the library.

#pragma once

#include "CoreMinimal.h"
#include "Misc/Paths.h"

#include <string>

THIRD_PARTY_INCLUDES_START
#include "svdq.hpp"
THIRD_PARTY_INCLUDES_END

inline FText SVDQTextFrom(const std::string& Utf8)
{
	return FText::AsCultureInvariant(FString(UTF8_TO_TCHAR(Utf8.c_str())));
}

inline std::string SVDQUtf8From(const FString& String)
{
	return std::string(TCHAR_TO_UTF8(*String));
}

/** A path that is relative to the project's folder. */
inline std::string SVDQPathFrom(const FString& Path)
{
	const FString Project = FPaths::ConvertRelativePathToFull(FPaths::ProjectDir());
	return SVDQUtf8From(FPaths::ConvertRelativePathToFull(Project, Path));
}
