#include "SVDQGenerateImage.h"

#include "Engine/Engine.h"
#include "Engine/Texture2D.h"
#include "Engine/World.h"
#include "SVDQState.h"
#include "SVDQSubsystem.h"
#include "TextureResource.h"

#define LOCTEXT_NAMESPACE "SVDQ"

namespace
{
	/** A texture whose pixels the library writes by itself; null and the reason in OutResult otherwise. */
	template <class ReadType>
	UTexture2D* MakeTexture(uint32 Width, uint32 Height, const ReadType& Read, svdq::Result<void>& OutResult)
	{
		UTexture2D* Texture = UTexture2D::CreateTransient(static_cast<int32>(Width), static_cast<int32>(Height), PF_B8G8R8A8);
		if (!Texture || !Texture->GetPlatformData() || Texture->GetPlatformData()->Mips.Num() == 0)
		{
			OutResult = svdq::Failure{SVDQ_ERR_OUT_OF_HOST_MEMORY, "the engine made no texture"};
			return nullptr;
		}
		Texture->SRGB = true;
		FTexture2DMipMap& Mip = Texture->GetPlatformData()->Mips[0];
		void* Pixels = Mip.BulkData.Lock(LOCK_READ_WRITE);
		const uint64 Capacity = static_cast<uint64>(Mip.BulkData.GetBulkDataSize());
		OutResult = Read(svdq::Image(Pixels, Capacity, Width, Height, SVDQ_FORMAT_BGRA8));
		Mip.BulkData.Unlock();
		if (!OutResult)
		{
			return nullptr;
		}
		Texture->UpdateResource();
		return Texture;
	}

	ESVDQPhase PhaseFrom(const svdq_job_status& Status)
	{
		switch (Status.phase)
		{
		case SVDQ_PHASE_ENCODE: return ESVDQPhase::EncodingPrompt;
		case SVDQ_PHASE_DENOISE: return ESVDQPhase::Denoising;
		case SVDQ_PHASE_DECODE: return ESVDQPhase::Decoding;
		default: return ESVDQPhase::Queued;
		}
	}

	/** What the library would have to take for something else. */
	bool IsPossible(const FSVDQRequest& Request)
	{
		return Request.Width >= 0 && Request.Height >= 0 && Request.Steps >= 0 && Request.PreviewEvery >= 0;
	}

	svdq::GenerateParams ParamsFrom(const FSVDQRequest& Request, svdq::GenerateParams Params)
	{
		Params.prompt = SVDQUtf8From(Request.Prompt);
		Params.width = Request.Width != 0 ? static_cast<uint32>(Request.Width) : Params.width;
		Params.height = Request.Height != 0 ? static_cast<uint32>(Request.Height) : Params.height;
		Params.steps = static_cast<uint32>(Request.Steps);
		Params.guidance = Request.Guidance;
		Params.seed = static_cast<uint64>(Request.Seed);
		Params.preview_every = static_cast<uint32>(Request.PreviewEvery);
		if (Request.InitPixels.Num() > 0)
		{
			static_assert(sizeof(FColor) == 4, "FColor is BGRA8");
			const uint64 Bytes = sizeof(FColor) * static_cast<uint64>(Request.InitPixels.Num());
			const void* Pixels = Request.InitPixels.GetData();
			Params.start_from(svdq::Image::readable(Pixels, Bytes, Params.width, Params.height, SVDQ_FORMAT_BGRA8), Request.InitStrength);
		}
		return Params;
	}

	/** Those of the request's LoRAs that are loaded; the others begin to be. */
	svdq::Result<svdq::LoraList> LorasFrom(const FSVDQRequest& Request, FSVDQState& State)
	{
		svdq::LoraList Loras;
		for (const FSVDQLora& Lora : Request.Loras)
		{
			const svdq::Result<const svdq::Lora*> Loaded = State.Loras.Get(State.Model, Lora.Path);
			if (!Loaded)
			{
				return Loaded.failure();
			}
			if (*Loaded)
			{
				Loras.add(**Loaded, Lora.Strength);
			}
		}
		return Loras;
	}
}

USVDQGenerateImage* USVDQGenerateImage::GenerateImage(UObject* WorldContextObject, const FSVDQRequest& Request)
{
	USVDQGenerateImage* Node = NewObject<USVDQGenerateImage>();
	Node->What = Request;
	Node->World = GEngine->GetWorldFromContextObject(WorldContextObject, EGetWorldErrorMode::LogAndReturnNull);
	return Node;
}

void USVDQGenerateImage::Activate()
{
	Task = MakeShared<FSVDQTask>();
	USVDQSubsystem* Subsystem = GEngine->GetEngineSubsystem<USVDQSubsystem>();
	if (!Subsystem)
	{
		Fail(ESVDQError::Cancelled, LOCTEXT("NoSubsystem", "The engine is shutting down"));
		return;
	}
	Subsystem->Run(this);
}

void USVDQGenerateImage::Cancel()
{
	if (Task)
	{
		Task->bCancelled = true;
		Task->Job.cancel();
	}
}

void USVDQGenerateImage::Abandon()
{
	Task.Reset(); // its job is cancelled
	SetReadyToDestroy();
}

bool USVDQGenerateImage::BelongsTo(const UWorld* Other) const
{
	return World.Get() == Other;
}

bool USVDQGenerateImage::Advance(FSVDQState& State)
{
	if (!Task->Job && !Submit(State))
	{
		return Task.IsValid();
	}
	const svdq::Result<svdq_job_status> Status = Task->Job.poll();
	if (!Status)
	{
		return Fail(SVDQErrorFrom(Status.code()), SVDQTextFrom(Status.text()));
	}
	if (Status->state == SVDQ_JOB_DONE)
	{
		return Complete();
	}
	if (Status->result != SVDQ_PENDING)
	{
		return Fail(SVDQErrorFrom(Status->result), SVDQTextFrom(Task->Job.error()));
	}
	UTexture2D* Preview = nullptr;
	if (Status->preview_serial != Task->PreviewSerial)
	{
		Task->PreviewSerial = Status->preview_serial;
		svdq::Result<void> Read;
		const svdq::Job& Job = Task->Job;
		Preview = MakeTexture(Status->preview_width, Status->preview_height, [&Job](const svdq::Image& Out) { return Job.read_preview(Out); }, Read);
	}
	ReportProgress(Preview, Status->fraction, PhaseFrom(*Status));
	return Task.IsValid(); // the event may have ended the world
}

/** True where the job is there. */
bool USVDQGenerateImage::Submit(FSVDQState& State)
{
	if (Task->bCancelled)
	{
		return Fail(ESVDQError::Cancelled, LOCTEXT("Cancelled", "Cancelled"));
	}
	switch (State.ModelState)
	{
	case ESVDQModelState::Unloaded:
		return Fail(ESVDQError::Cancelled, LOCTEXT("Unloaded", "The model was unloaded"));
	case ESVDQModelState::Failed:
		return Fail(State.Error, State.Message);
	case ESVDQModelState::Loading:
		ReportProgress(nullptr, State.Progress, ESVDQPhase::LoadingModel);
		return false;
	case ESVDQModelState::Ready:
		break;
	}
	if (!IsPossible(What))
	{
		return Fail(ESVDQError::InvalidRequest, LOCTEXT("Negative", "Sizes and steps cannot be negative"));
	}
	const svdq::Result<svdq::LoraList> Loras = LorasFrom(What, State);
	if (!Loras)
	{
		return Fail(SVDQErrorFrom(Loras.code()), SVDQTextFrom(Loras.text()));
	}
	if (Loras->size() < static_cast<uint32>(What.Loras.Num()))
	{
		ReportProgress(nullptr, 0.0f, ESVDQPhase::LoadingLoras);
		return false;
	}
	const svdq::Result<svdq::GenerateParams> Defaults = State.Model->defaults();
	if (!Defaults)
	{
		return Fail(SVDQErrorFrom(Defaults.code()), SVDQTextFrom(Defaults.text()));
	}
	svdq::GenerateParams Params = ParamsFrom(What, *Defaults);
	Params.loras = *Loras;
	if (Params.init.pixels && static_cast<uint64>(What.InitPixels.Num()) != static_cast<uint64>(Params.width) * Params.height)
	{
		return Fail(ESVDQError::InvalidRequest, LOCTEXT("InitSize", "InitPixels are not Width times Height"));
	}
	svdq::Result<svdq::Job> Job = State.Model->submit(Params);
	if (!Job)
	{
		return Fail(SVDQErrorFrom(Job.code()), SVDQTextFrom(Job.text()));
	}
	Task->Job = MoveTemp(*Job);
	Task->Width = Params.width;
	Task->Height = Params.height;
	return true;
}

bool USVDQGenerateImage::Complete()
{
	svdq::Result<void> Read;
	const svdq::Job& Job = Task->Job;
	Texture = MakeTexture(Task->Width, Task->Height, [&Job](const svdq::Image& Out) { return Job.read_image(Out); }, Read);
	if (!Read)
	{
		return Fail(SVDQErrorFrom(Read.code()), SVDQTextFrom(Read.text()));
	}
	Task.Reset();
	SetReadyToDestroy();
	OnCompleted.Broadcast(Texture, 1.0f, ESVDQPhase::Finished, ESVDQError::None, FText::GetEmpty());
	return false;
}

bool USVDQGenerateImage::Fail(ESVDQError Error, const FText& Message)
{
	Task.Reset();
	SetReadyToDestroy();
	OnFailed.Broadcast(nullptr, 0.0f, ESVDQPhase::Finished, Error, Message);
	return false;
}

void USVDQGenerateImage::ReportProgress(UTexture2D* Preview, float Fraction, ESVDQPhase Phase)
{
	if (Preview || Fraction != Task->Fraction || Phase != Task->Phase)
	{
		Task->Fraction = Fraction;
		Task->Phase = Phase;
		OnProgress.Broadcast(Preview, Fraction, Phase, ESVDQError::None, FText::GetEmpty());
	}
}

#undef LOCTEXT_NAMESPACE
