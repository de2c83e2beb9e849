// What the plug-in uses of the engine, with the engine's names and types, so that it is compiled and run without
// one: strings of char16_t, arrays, pointers, delegates, objects that are collected, logs.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

typedef std::uint8_t uint8;
typedef std::int32_t int32;
typedef std::uint32_t uint32;
typedef std::int64_t int64;
typedef std::uint64_t uint64;
typedef char16_t TCHAR;

#ifndef PLATFORM_WINDOWS
#define PLATFORM_WINDOWS 0
#endif
#define TEXT(Literal) u##Literal
#define THIRD_PARTY_INCLUDES_START
#define THIRD_PARTY_INCLUDES_END

// Names that the engine takes from everybody.
#define check(Expression) { if (!(Expression)) { std::abort(); } }
#define verify(Expression) { if (!(Expression)) { std::abort(); } }
#define ensure(Expression) (!!(Expression))
#define PI (3.1415926535897932f)

template <class T>
std::remove_reference_t<T>&& MoveTemp(T&& Value) { return static_cast<std::remove_reference_t<T>&&>(Value); }

struct FMath
{
	template <class T>
	static T Max(T A, T B) { return A < B ? B : A; }
};

// ---- strings ----

std::u16string StubUtf16(const std::string& Utf8);
std::string StubUtf8(const std::u16string& Utf16);

class FString
{
public:
	FString() {}
	FString(const TCHAR* Text_) : Text(Text_) {}
	const TCHAR* operator*() const { return Text.c_str(); }
	bool IsEmpty() const { return Text.empty(); }
	bool operator==(const FString& Other) const { return Text == Other.Text; }
	bool operator!=(const FString& Other) const { return Text != Other.Text; }

	std::u16string Text;
};

struct FTCHARToUTF8
{
	explicit FTCHARToUTF8(const TCHAR* Text_) : Text(StubUtf8(Text_)) {}
	std::string Text;
};
struct FUTF8ToTCHAR
{
	explicit FUTF8ToTCHAR(const char* Text_) : Text(StubUtf16(Text_)) {}
	std::u16string Text;
};
// As in the engine, what these point to lives until the end of the full expression.
#define TCHAR_TO_UTF8(Value) (FTCHARToUTF8(Value).Text.c_str())
#define UTF8_TO_TCHAR(Value) (FUTF8ToTCHAR(Value).Text.c_str())

class FName
{
public:
	explicit FName(const TCHAR* Text_) : Text(Text_) {}
	std::u16string Text;
};

class FText
{
public:
	static FText GetEmpty() { return FText(); }
	static FText AsCultureInvariant(const FString& String) { FText Made; Made.String = String; return Made; }
	const FString& ToString() const { return String; }

private:
	FString String;
};
#define LOCTEXT(Key, Literal) FText::AsCultureInvariant(FString(TEXT(Literal)))

// ---- containers and pointers ----

template <class T>
class TArray
{
public:
	int32 Num() const { return static_cast<int32>(Items.size()); }
	T& operator[](int32 Index) { check(Index >= 0 && Index < Num()); return Items[static_cast<std::size_t>(Index)]; }
	const T* GetData() const { return Items.data(); }
	void Add(T Item) { Items.push_back(std::move(Item)); }
	void RemoveAt(int32 Index) { check(Index >= 0 && Index < Num()); Items.erase(Items.begin() + Index); }
	void Empty() { Items.clear(); }
	template <class U>
	bool Contains(const U& Item) const { return std::find(Items.begin(), Items.end(), Item) != Items.end(); }
	template <class U>
	void Remove(const U& Item) { Items.erase(std::remove(Items.begin(), Items.end(), Item), Items.end()); }
	template <class F>
	int32 RemoveAll(const F& Function)
	{
		const int32 Before = Num();
		Items.erase(std::remove_if(Items.begin(), Items.end(), Function), Items.end());
		return Before - Num();
	}
	typename std::vector<T>::iterator begin() { return Items.begin(); }
	typename std::vector<T>::iterator end() { return Items.end(); }
	typename std::vector<T>::const_iterator begin() const { return Items.begin(); }
	typename std::vector<T>::const_iterator end() const { return Items.end(); }

private:
	std::vector<T> Items;
};

struct FColor
{
	uint8 B;
	uint8 G;
	uint8 R;
	uint8 A;
};

template <class T>
class TSharedPtr
{
public:
	TSharedPtr() {}
	TSharedPtr(std::shared_ptr<T> Pointer_) : Pointer(std::move(Pointer_)) {}
	T* operator->() const { check(Pointer); return Pointer.get(); }
	T& operator*() const { check(Pointer); return *Pointer; }
	explicit operator bool() const { return Pointer != nullptr; }
	bool IsValid() const { return Pointer != nullptr; }
	void Reset() { Pointer.reset(); }

private:
	std::shared_ptr<T> Pointer;
};
template <class T, class... A>
TSharedPtr<T> MakeShared(A&&... Arguments) { return TSharedPtr<T>(std::make_shared<T>(std::forward<A>(Arguments)...)); }

// ---- objects ----

class UObject;
class UWorld;

template <class T>
class TObjectPtr
{
public:
	TObjectPtr(T* Object_ = nullptr) : Object(Object_) {}
	operator T*() const { return Object; }
	T* operator->() const { check(Object); return Object; }

private:
	T* Object;
};

/** Finds what properties refer to. */
struct FReferenceVisitor
{
	std::vector<UObject*> Found;

	// Classes are often incomplete here; an object begins with its UObject.
	template <class T>
	void Visit(const TObjectPtr<T>& Object) { Found.push_back(reinterpret_cast<UObject*>(static_cast<T*>(Object))); }
	template <class T>
	void Visit(const TArray<TObjectPtr<T>>& Objects)
	{
		for (const TObjectPtr<T>& Object : Objects) { Visit(Object); }
	}
};

/** All objects that have not been collected. */
std::set<const UObject*>& StubObjects();

class UObject
{
public:
	UObject() { StubObjects().insert(this); }
	virtual ~UObject() { StubObjects().erase(this); }
	UObject(const UObject&) = delete;
	virtual void VisitReferences(FReferenceVisitor&) {}
	virtual UWorld* GetWorld() const { return nullptr; }
	bool IsRooted() const { return bRooted; }
	void AddToRoot() { bRooted = true; }
	void RemoveFromRoot() { bRooted = false; }

private:
	bool bRooted = false;
};

template <class T>
T* NewObject() { return new T(); }

/** The object of a class with what the configuration says. */
template <class T>
T* GetMutableDefault()
{
	static T* Default = []() { T* Made = new T(); Made->AddToRoot(); return Made; }();
	return Default;
}
template <class T>
const T* GetDefault() { return GetMutableDefault<T>(); }

template <class T>
class TWeakObjectPtr
{
public:
	TWeakObjectPtr(T* Object_ = nullptr) : Object(Object_) {}
	T* Get() const { return StubObjects().count(reinterpret_cast<const UObject*>(Object)) ? Object : nullptr; }

private:
	T* Object;
};

// What UnrealHeaderTool reads. X.generated.h defines what GENERATED_BODY becomes in which line.
#define UCLASS(...)
#define USTRUCT(...)
#define UENUM(...)
#define UPROPERTY(...)
#define UFUNCTION(...)
#define STUB_JOIN_(A, B, C, D) A##B##C##D
#define STUB_JOIN(A, B, C, D) STUB_JOIN_(A, B, C, D)
#define GENERATED_BODY(...) STUB_JOIN(CURRENT_FILE_ID, _, __LINE__, _GENERATED_BODY)

// ---- delegates ----

struct FDelegateHandle
{
	int64 Id = 0;
};

template <class... T>
class TStubEvent
{
public:
	template <class C>
	FDelegateHandle AddUObject(C* Object, void (C::*Function)(T...))
	{
		return Add([Object, Function](T... Arguments) { (Object->*Function)(Arguments...); });
	}
	FDelegateHandle Add(std::function<void(T...)> Function)
	{
		Bound.push_back({FDelegateHandle{++Last}, std::move(Function)});
		return Bound.back().first;
	}
	void Remove(FDelegateHandle Handle)
	{
		Bound.erase(std::remove_if(Bound.begin(), Bound.end(), [Handle](const auto& One) { return One.first.Id == Handle.Id; }), Bound.end());
	}
	void Broadcast(T... Arguments) const
	{
		const auto Now = Bound;
		for (const auto& One : Now) { One.second(Arguments...); }
	}
	bool IsBound() const { return !Bound.empty(); }

private:
	int64 Last = 0;
	std::vector<std::pair<FDelegateHandle, std::function<void(T...)>>> Bound;
};
#define DECLARE_DYNAMIC_MULTICAST_DELEGATE_FiveParams(Name, T1, N1, T2, N2, T3, N3, T4, N4, T5, N5) \
	typedef TStubEvent<T1, T2, T3, T4, T5> Name

// ---- logs ----

/** "LogSVDQ Error: text" for each line. */
std::vector<std::string>& StubLog();
void StubLogLine(const char* Category, const char* Verbosity, const TCHAR* Format, const TCHAR* Argument = u"");
#define DECLARE_LOG_CATEGORY_EXTERN(Name, Default, CompileTime) extern const char* Name
#define DEFINE_LOG_CATEGORY(Name) const char* Name = #Name
#define UE_LOG(Category, Verbosity, ...) StubLogLine(Category, #Verbosity, __VA_ARGS__)
