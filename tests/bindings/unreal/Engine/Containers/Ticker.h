#pragma once

#include "CoreMinimal.h"

class FTickerDelegate
{
public:
	template <class C>
	static FTickerDelegate CreateUObject(C* Object, bool (C::*Function)(float))
	{
		FTickerDelegate Made;
		Made.Function = [Object, Function](float DeltaTime) { return (Object->*Function)(DeltaTime); };
		return Made;
	}
	std::function<bool(float)> Function;
};

class FTSTicker
{
public:
	typedef std::shared_ptr<FTickerDelegate> FDelegateHandle;

	static FTSTicker& GetCoreTicker();
	FDelegateHandle AddTicker(const FTickerDelegate& Delegate)
	{
		Tickers.push_back(std::make_shared<FTickerDelegate>(Delegate));
		return Tickers.back();
	}
	void RemoveTicker(const FDelegateHandle& Handle) { Tickers.erase(std::remove(Tickers.begin(), Tickers.end(), Handle), Tickers.end()); }
	void Tick(float DeltaTime)
	{
		const std::vector<FDelegateHandle> Now = Tickers;
		for (const FDelegateHandle& Ticker : Now)
		{
			if (!Ticker->Function(DeltaTime)) { RemoveTicker(Ticker); }
		}
	}

private:
	std::vector<FDelegateHandle> Tickers;
};
