// The parts of the stubs that are not in headers.

#include "Containers/Ticker.h"
#include "DynamicRHI.h"
#include "Engine/Engine.h"
#include "Engine/Texture2D.h"

#include <codecvt>
#include <locale>

namespace
{
	typedef std::wstring_convert<std::codecvt_utf8_utf16<char16_t>, char16_t> FConvert;
}

UEngine* GEngine = nullptr;
FDynamicRHI* GDynamicRHI = nullptr;
TStubEvent<UWorld*, bool, bool> FWorldDelegates::OnWorldCleanup;

std::u16string StubUtf16(const std::string& Utf8) { return FConvert().from_bytes(Utf8); }
std::string StubUtf8(const std::u16string& Utf16) { return FConvert().to_bytes(Utf16); }

std::set<const UObject*>& StubObjects()
{
	static std::set<const UObject*> Objects;
	return Objects;
}

std::vector<std::string>& StubLog()
{
	static std::vector<std::string> Lines;
	return Lines;
}

void StubLogLine(const char* Category, const char* Verbosity, const TCHAR* Format, const TCHAR* Argument)
{
	std::string Text = StubUtf8(Format);
	const std::size_t At = Text.find("%s");
	if (At != std::string::npos) { Text.replace(At, 2, StubUtf8(Argument)); }
	StubLog().push_back(std::string(Category) + " " + Verbosity + ": " + Text);
}

FTSTicker& FTSTicker::GetCoreTicker()
{
	static FTSTicker Ticker;
	return Ticker;
}

UTexture2D* UTexture2D::CreateTransient(int32 Width, int32 Height, EPixelFormat)
{
	if (Width <= 0 || Height <= 0) { return nullptr; }
	UTexture2D* Texture = NewObject<UTexture2D>();
	Texture->SizeX = Width;
	Texture->SizeY = Height;
	FTexture2DMipMap Mip;
	Mip.BulkData.Bytes.resize(static_cast<std::size_t>(Width) * static_cast<std::size_t>(Height) * 4);
	Texture->PlatformData.Mips.Add(Mip);
	return Texture;
}

int32 UEngine::CollectGarbage()
{
	std::set<const UObject*> Reached;
	std::vector<UObject*> Next;
	for (const UObject* Object : StubObjects())
	{
		if (Object->IsRooted()) { Next.push_back(const_cast<UObject*>(Object)); }
	}
	while (!Next.empty())
	{
		UObject* Object = Next.back();
		Next.pop_back();
		if (!Object || !Reached.insert(Object).second) { continue; }
		FReferenceVisitor Visitor;
		Object->VisitReferences(Visitor);
		Next.insert(Next.end(), Visitor.Found.begin(), Visitor.Found.end());
	}
	std::vector<const UObject*> Garbage;
	for (const UObject* Object : StubObjects())
	{
		if (!Reached.count(Object)) { Garbage.push_back(Object); }
	}
	for (const UObject* Object : Garbage) { delete Object; }
	return static_cast<int32>(Garbage.size());
}
