#pragma once

#include "CoreMinimal.h"
#include "Engine/World.h"
#include "Subsystems/EngineSubsystem.h"

enum class EGetWorldErrorMode { LogAndReturnNull };

class UEngine
{
public:
	UWorld* GetWorldFromContextObject(const UObject* Object, EGetWorldErrorMode) const { return Object ? Object->GetWorld() : nullptr; }

	/** The only one; null once the engine shuts down. */
	template <class T>
	T* GetEngineSubsystem() const { return static_cast<T*>(Subsystem); }

	/** Before the first frame, and after the last. */
	template <class T>
	void Start()
	{
		FSubsystemCollectionBase Collection;
		Subsystem = NewObject<T>();
		Subsystem->AddToRoot();
		Subsystem->Initialize(Collection);
	}
	void Stop()
	{
		Subsystem->Deinitialize();
		Subsystem->RemoveFromRoot();
		Subsystem = nullptr;
	}

	/** Collects what no root refers to; returns how many objects. */
	int32 CollectGarbage();

private:
	UEngineSubsystem* Subsystem = nullptr;
};

extern UEngine* GEngine;
