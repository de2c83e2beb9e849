using System;
using Svdq.Native;

namespace Svdq
{
    /// <summary>A GPU of the NVIDIA driver, in the driver's order.</summary>
    public sealed unsafe class Device
    {
        public uint Index { get; }
        public string Name { get; }
        /// <summary>16 bytes, for ContextOptions.DeviceId with DeviceSelect.Uuid.</summary>
        public byte[] Uuid { get; }
        /// <summary>8 bytes, by which Direct3D and Vulkan call the adapter. Null outside Windows.</summary>
        public byte[] Luid { get; }
        /// <summary>89 is 8.9.</summary>
        public uint ComputeCapability { get; }
        /// <summary>The CUDA version that the driver knows: 13000 is 13.0.</summary>
        public uint DriverVersion { get; }
        /// <summary>Bytes.</summary>
        public ulong MemoryTotal { get; }
        /// <summary>Bytes.</summary>
        public ulong MemoryFree { get; }

        readonly uint int4Profiles, nvfp4Profiles;

        Device(uint index)
        {
            svdq_device_info info;
            info.struct_size = (uint)sizeof(svdq_device_info);
            SvdqException.Check(Api.svdq_device_get_info(index, &info));
            Index = index;
            Name = Text.FromPointer(info.name, 128);
            Uuid = Bytes(info.uuid, 16);
            Luid = info.luid_valid != 0 ? Bytes(info.luid, 8) : null;
            ComputeCapability = info.compute_capability;
            DriverVersion = info.driver_version;
            MemoryTotal = info.memory_total;
            MemoryFree = info.memory_free;
            int4Profiles = info.int4_profiles;
            nvfp4Profiles = info.nvfp4_profiles;
        }

        /// <summary>Whether models of this precision can run in this profile here.</summary>
        public bool Supports(Precision precision, Profile profile)
        {
            var profiles = precision == Precision.Nvfp4 ? nvfp4Profiles : int4Profiles;
            return (profiles & 1u << (int)profile) != 0;
        }

        /// <summary>All GPUs. Throws with Result.NoDriver or Result.DriverTooOld where none can be used.</summary>
        public static Device[] All()
        {
            uint count;
            SvdqException.Check(Api.svdq_device_count(&count));
            var devices = new Device[count];
            for (var i = 0u; i < count; i++) devices[i] = new Device(i);
            return devices;
        }

        static byte[] Bytes(byte* from, int length)
        {
            var bytes = new byte[length];
            for (var i = 0; i < length; i++) bytes[i] = from[i];
            return bytes;
        }
    }
}
