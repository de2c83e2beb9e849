#pragma once

#include "Engine/Texture2D.h"
