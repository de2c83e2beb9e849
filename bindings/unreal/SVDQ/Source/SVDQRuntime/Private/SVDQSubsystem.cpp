#include "SVDQSubsystem.h"

#include "Async/Async.h"
#include "Engine/World.h"
#include "SVDQGenerateImage.h"
#include "SVDQModule.h"
#include "SVDQRenderer.h"
#include "SVDQSettings.h"
#include "SVDQState.h"

#include <chrono>

#define LOCTEXT_NAMESPACE "SVDQ"

namespace
{
	uint64 BytesOf(int32 MiB)
	{
		return static_cast<uint64>(FMath::Max(MiB, 0)) << 20;
	}

	svdq::ContextParams ContextParamsOf(const USVDQSettings& Settings)
	{
		svdq::ContextParams Params;
		Params.threads = static_cast<uint32>(FMath::Max(Settings.Threads, 0));
		Params.memory_budget = BytesOf(Settings.MemoryBudgetMiB);
		if (Settings.Device == ESVDQDevice::Cpu)
		{
			Params.use_cpu();
		}
		if (Settings.Device == ESVDQDevice::Renderer && !SVDQUseRenderer(Params))
		{
			UE_LOG(LogSVDQ, Warning, TEXT("the renderer is not Direct3D 12 or Vulkan: the first GPU that will do is taken"));
		}
		switch (Settings.GpuPriority)
		{
		case ESVDQPriority::Low: Params.gpu_priority = SVDQ_PRIORITY_LOW; break;
		case ESVDQPriority::Balanced: Params.gpu_priority = SVDQ_PRIORITY_BALANCED; break;
		case ESVDQPriority::High: Params.gpu_priority = SVDQ_PRIORITY_HIGH; break;
		}
		return Params;
	}
}

ESVDQError SVDQErrorFrom(svdq_result Result)
{
	switch (Result)
	{
	case SVDQ_OK:
		return ESVDQError::None;
	case SVDQ_ERR_CANCELLED:
	case SVDQ_ERR_SHUTTING_DOWN:
		return ESVDQError::Cancelled;
	case SVDQ_ERR_INVALID_ARGUMENT:
	case SVDQ_ERR_UNSUPPORTED:
		return ESVDQError::InvalidRequest;
	case SVDQ_ERR_IO:
	case SVDQ_ERR_NOT_FOUND:
	case SVDQ_ERR_BAD_FORMAT:
	case SVDQ_ERR_WRONG_MODEL:
		return ESVDQError::ModelFiles;
	case SVDQ_ERR_OUT_OF_HOST_MEMORY:
	case SVDQ_ERR_OUT_OF_DEVICE_MEMORY:
	case SVDQ_ERR_MEMORY_BUDGET:
		return ESVDQError::Memory;
	case SVDQ_ERR_NO_DRIVER:
	case SVDQ_ERR_DRIVER_TOO_OLD:
	case SVDQ_ERR_NO_DEVICE:
	case SVDQ_ERR_DEVICE_UNSUPPORTED:
	case SVDQ_ERR_DEVICE_LOST:
		return ESVDQError::Device;
	default:
		return ESVDQError::Internal;
	}
}

void USVDQSubsystem::Initialize(FSubsystemCollectionBase& Collection)
{
	Super::Initialize(Collection);
	State = MakeShared<FSVDQState>();
	TickHandle = FTSTicker::GetCoreTicker().AddTicker(FTickerDelegate::CreateUObject(this, &USVDQSubsystem::Tick));
	WorldCleanupHandle = FWorldDelegates::OnWorldCleanup.AddUObject(this, &USVDQSubsystem::OnWorldCleanup);
}

void USVDQSubsystem::Deinitialize()
{
	FTSTicker::GetCoreTicker().RemoveTicker(TickHandle);
	FWorldDelegates::OnWorldCleanup.Remove(WorldCleanupHandle);
	for (USVDQGenerateImage* Node : Running)
	{
		Node->Abandon();
	}
	Running.Empty();
	if (State->Creation)
	{
		State->Done.Wait();
		State->Context = State->Creation->Result ? MoveTemp(*State->Creation->Result) : svdq::Context();
	}
	if (State->Context)
	{
		const svdq::Result<bool> Ended = State->Context.shutdown(std::chrono::seconds(10));
		ReadLog();
		if (!Ended || !*Ended)
		{
			UE_LOG(LogSVDQ, Warning, TEXT("the library still runs after 10 seconds"));
		}
	}
	State->Loras.Wait();
	State.Reset();
	Super::Deinitialize();
}

void USVDQSubsystem::LoadModel()
{
	if (!State || State->ModelState == ESVDQModelState::Loading || State->ModelState == ESVDQModelState::Ready)
	{
		return;
	}
	State->Message = FText::GetEmpty();
	State->Error = ESVDQError::None;
	State->Progress = 0.0f;
	if (!FSVDQRuntimeModule::IsLibraryLoaded())
	{
		Fail(ESVDQError::Internal, LOCTEXT("NoLibrary", "svdq.dll was not found"));
		return;
	}
	if (GetDefault<USVDQSettings>()->ModelPath.IsEmpty())
	{
		Fail(ESVDQError::ModelFiles, LOCTEXT("NoModel", "The project settings of SVDQ name no model"));
		return;
	}
	State->ModelState = ESVDQModelState::Loading;
	if (!State->Context && !State->Creation)
	{
		TSharedPtr<FSVDQCreation> Creation = MakeShared<FSVDQCreation>();
		State->Creation = Creation;
		State->Done = Async(EAsyncExecution::Thread, [Creation, Params = ContextParamsOf(*GetDefault<USVDQSettings>())]()
		{
			Creation->Result = svdq::Context::create(Params);
		});
	}
}

void USVDQSubsystem::UnloadModel()
{
	if (State)
	{
		State->Loading.reset();
		State->Loras.Drop();
		State->Model.Reset();
		State->ModelState = ESVDQModelState::Unloaded;
		State->Progress = 0.0f;
	}
}

void USVDQSubsystem::UnloadLoras()
{
	if (State)
	{
		State->Loras.Drop();
	}
}

ESVDQModelState USVDQSubsystem::GetModelState() const
{
	return State ? State->ModelState : ESVDQModelState::Unloaded;
}

float USVDQSubsystem::GetLoadProgress() const
{
	return State ? State->Progress : 0.0f;
}

FText USVDQSubsystem::GetModelError() const
{
	return State ? State->Message : FText::GetEmpty();
}

bool USVDQSubsystem::SetMemoryBudget(int32 MiB)
{
	GetMutableDefault<USVDQSettings>()->MemoryBudgetMiB = MiB;
	return !State || !State->Context || State->Context.set_memory_budget(BytesOf(MiB)).ok();
}

void USVDQSubsystem::Run(USVDQGenerateImage* Node)
{
	LoadModel();
	Running.Add(Node);
}

bool USVDQSubsystem::Tick(float DeltaTime)
{
	ReadLog();
	TickLoading();
	TickNodes();
	return true;
}

void USVDQSubsystem::TickLoading()
{
	if (State->Creation && State->Done.IsReady())
	{
		svdq::Result<svdq::Context> Made = MoveTemp(State->Creation->Result);
		State->Creation.Reset();
		if (!Made)
		{
			Fail(SVDQErrorFrom(Made.code()), SVDQTextFrom(Made.text()));
			return;
		}
		State->Context = MoveTemp(*Made);
		SetMemoryBudget(GetDefault<USVDQSettings>()->MemoryBudgetMiB); // it may have changed meanwhile
	}
	if (State->ModelState != ESVDQModelState::Loading || !State->Context)
	{
		return;
	}
	if (!State->Loading)
	{
		const USVDQSettings& Settings = *GetDefault<USVDQSettings>();
		svdq::ModelParams Params(SVDQPathFrom(Settings.ModelPath));
		Params.flags = Settings.bStartFromImages ? SVDQ_MODEL_IMAGE_INPUT : 0;
		svdq::Result<svdq::Job> Job = State->Context.submit_load(Params);
		if (!Job)
		{
			Fail(SVDQErrorFrom(Job.code()), SVDQTextFrom(Job.text()));
			return;
		}
		State->Loading = MoveTemp(*Job);
	}
	const svdq::Result<svdq_job_status> Status = State->Loading.poll();
	if (Status && Status->result == SVDQ_PENDING)
	{
		State->Progress = Status->fraction;
		return;
	}
	svdq::Result<svdq::Model> Model = State->Loading.take_model();
	State->Loading.reset();
	if (!Model)
	{
		Fail(SVDQErrorFrom(Model.code()), SVDQTextFrom(Model.text()));
		return;
	}
	State->Model = MakeShared<svdq::Model>(MoveTemp(*Model));
	State->ModelState = ESVDQModelState::Ready;
	State->Progress = 1.0f;
}

void USVDQSubsystem::TickNodes()
{
	// Events may start nodes and end worlds, and so change Running.
	const TArray<TObjectPtr<USVDQGenerateImage>> Nodes = Running;
	for (USVDQGenerateImage* Node : Nodes)
	{
		if (Running.Contains(Node) && !Node->Advance(*State))
		{
			Running.Remove(Node);
		}
	}
}

void USVDQSubsystem::ReadLog()
{
	while (State->Context)
	{
		const svdq::Result<svdq::LogLine> Line = State->Context.read_log();
		if (!Line || Line->level == 0)
		{
			return;
		}
		const FString Message(UTF8_TO_TCHAR(Line->message.c_str()));
		switch (Line->level)
		{
		case SVDQ_LOG_ERROR: UE_LOG(LogSVDQ, Error, TEXT("%s"), *Message); break;
		case SVDQ_LOG_WARNING: UE_LOG(LogSVDQ, Warning, TEXT("%s"), *Message); break;
		case SVDQ_LOG_INFO: UE_LOG(LogSVDQ, Log, TEXT("%s"), *Message); break;
		default: UE_LOG(LogSVDQ, Verbose, TEXT("%s"), *Message); break;
		}
	}
}

void USVDQSubsystem::Fail(ESVDQError Error, const FText& Message)
{
	State->ModelState = ESVDQModelState::Failed;
	State->Error = Error;
	State->Message = Message;
	UE_LOG(LogSVDQ, Error, TEXT("%s"), *Message.ToString());
}

void USVDQSubsystem::OnWorldCleanup(UWorld* World, bool bSessionEnded, bool bCleanupResources)
{
	Running.RemoveAll([World](USVDQGenerateImage* Node)
	{
		if (!Node->BelongsTo(World))
		{
			return false;
		}
		Node->Abandon();
		return true;
	});
}

#undef LOCTEXT_NAMESPACE
