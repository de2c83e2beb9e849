// Owns the context and the model, and moves running nodes on. All of it happens on the game thread; nothing in it
// blocks, but for the end of the engine.

#pragma once

#include "Containers/Ticker.h"
#include "CoreMinimal.h"
#include "Subsystems/EngineSubsystem.h"
#include "SVDQTypes.h"

#include "SVDQSubsystem.generated.h"

class USVDQGenerateImage;
class UWorld;
struct FSVDQState;

UCLASS()
class SVDQRUNTIME_API USVDQSubsystem : public UEngineSubsystem
{
	GENERATED_BODY()

public:
	virtual void Initialize(FSubsystemCollectionBase& Collection) override;
	virtual void Deinitialize() override;

	/** Begins to load the model of the project settings, unless it is there or on its way. A node does it by itself. */
	UFUNCTION(BlueprintCallable, Category = "SVDQ")
	void LoadModel();

	/** Gives the model's memory back. Nodes that already generate go on, and keep it until they are done. */
	UFUNCTION(BlueprintCallable, Category = "SVDQ")
	void UnloadModel();

	/** Gives the memory of LoRAs back, which otherwise stay until UnloadModel. Nodes that generate keep theirs. */
	UFUNCTION(BlueprintCallable, Category = "SVDQ")
	void UnloadLoras();

	UFUNCTION(BlueprintPure, Category = "SVDQ")
	ESVDQModelState GetModelState() const;

	/** 0 to 1. */
	UFUNCTION(BlueprintPure, Category = "SVDQ")
	float GetLoadProgress() const;

	/** Why the model could not be loaded. */
	UFUNCTION(BlueprintPure, Category = "SVDQ")
	FText GetModelError() const;

	/** Changes the memory budget of the settings until the engine ends; false where the loaded model needs more. */
	UFUNCTION(BlueprintCallable, Category = "SVDQ")
	bool SetMemoryBudget(int32 MiB);

	/** Moves a node on in every tick, and keeps it from being collected, until it has finished. */
	void Run(USVDQGenerateImage* Node);

private:
	bool Tick(float DeltaTime);
	void TickLoading();
	void TickNodes();
	void ReadLog();
	void Fail(ESVDQError Error, const FText& Message);
	void OnWorldCleanup(UWorld* World, bool bSessionEnded, bool bCleanupResources);

	UPROPERTY(Transient)
	TArray<TObjectPtr<USVDQGenerateImage>> Running;

	/** From Initialize to Deinitialize. */
	TSharedPtr<FSVDQState> State;

	FTSTicker::FDelegateHandle TickHandle;
	FDelegateHandle WorldCleanupHandle;
};
