#pragma once

#include "CoreMinimal.h"

enum EPixelFormat { PF_B8G8R8A8 };
enum { LOCK_READ_WRITE = 2 };

class FStubBulkData
{
public:
	void* Lock(int32 Mode) { check(Mode == LOCK_READ_WRITE && !bLocked); bLocked = true; return Bytes.data(); }
	void Unlock() { check(bLocked); bLocked = false; }
	int64 GetBulkDataSize() const { return static_cast<int64>(Bytes.size()); }

	std::vector<uint8> Bytes;
	bool bLocked = false;
};

struct FTexture2DMipMap
{
	FStubBulkData BulkData;
};

struct FTexturePlatformData
{
	TArray<FTexture2DMipMap> Mips;
};

class UTexture2D : public UObject
{
public:
	/** Null for sizes that cannot be, as in the engine. */
	static UTexture2D* CreateTransient(int32 Width, int32 Height, EPixelFormat);
	FTexturePlatformData* GetPlatformData() { return &PlatformData; }
	void UpdateResource() { check(!PlatformData.Mips[0].BulkData.bLocked); ++Updates; }

	bool SRGB = false;
	int32 SizeX = 0;
	int32 SizeY = 0;
	/** How often pixels went to the renderer. */
	int32 Updates = 0;

private:
	FTexturePlatformData PlatformData;
};
