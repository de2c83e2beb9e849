// The LoRAs of the loaded model.

#pragma once

#include "Async/Future.h"
#include "CoreMinimal.h"
#include "SVDQText.h"

/** LoRAs of files, each loaded once, in a thread of its own: that takes too long for a frame. On the game thread. */
class FSVDQLoras
{
public:
	/** A LoRA for the model that they all are for; null while it is being loaded, which this begins. */
	svdq::Result<const svdq::Lora*> Get(const TSharedPtr<svdq::Model>& Model, const FString& Path);

	/** Gives their memory back. Pictures that are being made keep theirs until they are done. */
	void Drop();

	/** Waits for the threads. */
	void Wait();

private:
	struct FEntry
	{
		FString Path;
		/** The thread's until Done is ready. */
		TSharedPtr<svdq::Result<svdq::Lora>> Lora;
		TFuture<void> Done;
	};

	TArray<FEntry> Entries;
	/** Of LoRAs that were dropped while they were being loaded. */
	TArray<TFuture<void>> Leaving;
};
