#include "SVDQLoras.h"

#include "Async/Async.h"

svdq::Result<const svdq::Lora*> FSVDQLoras::Get(const TSharedPtr<svdq::Model>& Model, const FString& Path)
{
	for (int32 Index = 0; Index < Entries.Num(); ++Index)
	{
		FEntry& Entry = Entries[Index];
		if (Entry.Path != Path)
		{
			continue;
		}
		if (!Entry.Done.IsReady())
		{
			return nullptr;
		}
		if (Entry.Lora->ok())
		{
			return &**Entry.Lora;
		}
		const svdq::Failure Failure = Entry.Lora->failure();
		Entries.RemoveAt(Index); // the next request tries again
		return Failure;
	}
	FEntry Entry;
	Entry.Path = Path;
	Entry.Lora = MakeShared<svdq::Result<svdq::Lora>>(svdq::Lora());
	Entry.Done = Async(EAsyncExecution::Thread, [Target = Model, Lora = Entry.Lora, File = SVDQPathFrom(Path)]() mutable
	{
		*Lora = Target->load_lora(File);
		// Nothing of the library's goes with the thread, after Done.
		Lora.Reset();
		Target.Reset();
	});
	Entries.Add(MoveTemp(Entry));
	return nullptr;
}

void FSVDQLoras::Drop()
{
	Leaving.RemoveAll([](const TFuture<void>& Done) { return Done.IsReady(); });
	for (FEntry& Entry : Entries)
	{
		Leaving.Add(MoveTemp(Entry.Done));
	}
	Entries.Empty();
}

void FSVDQLoras::Wait()
{
	Drop();
	for (const TFuture<void>& Done : Leaving)
	{
		Done.Wait();
	}
	Leaving.Empty();
}
