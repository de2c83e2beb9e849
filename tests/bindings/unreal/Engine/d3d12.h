// What Windows has of it.

#pragma once

#include <cstdint>

struct LUID
{
	std::uint32_t LowPart;
	std::int32_t HighPart;
};

struct ID3D12Device
{
	virtual ~ID3D12Device() {}
	virtual LUID GetAdapterLuid() = 0;
};
