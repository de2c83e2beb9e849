using System;
using Svdq.Native;

namespace Svdq
{
    /// <summary>The bytes of a pixel, in their order in memory.</summary>
    public enum PixelFormat
    {
        Rgba8 = (int)Api.SVDQ_FORMAT_RGBA8,
        Bgra8 = (int)Api.SVDQ_FORMAT_BGRA8,
        Rgb8 = (int)Api.SVDQ_FORMAT_RGB8,
    }

    public enum RowOrder
    {
        /// <summary>The first row in memory is the bottom row of the picture, as in a Texture2D.</summary>
        BottomUp,
        /// <summary>The first row in memory is the top row of the picture, as in image files.</summary>
        TopDown,
    }

    /// <summary>How pixels lie in memory. The default is that of a Texture2D in RGBA32.</summary>
    public struct ImageLayout
    {
        PixelFormat format;

        public PixelFormat Format
        {
            get => format == 0 ? PixelFormat.Rgba8 : format;
            set => format = value;
        }

        public RowOrder Rows;

        /// <summary>Bytes from the start of a row to the start of the next. 0: rows follow each other at once.</summary>
        public long RowStride;

        public ImageLayout(PixelFormat format, RowOrder rows, long rowStride = 0)
        {
            this.format = format;
            Rows = rows;
            RowStride = rowStride;
        }

        /// <summary>The bytes that a picture takes.</summary>
        public unsafe long Bytes(int width, int height)
        {
            var image = ToNative(width, height, null, 0);
            ulong bytes;
            SvdqException.Check(Api.svdq_image_bytes(&image, &bytes));
            return checked((long)bytes);
        }

        internal unsafe svdq_image ToNative(int width, int height, void* pixels, long capacity) => new svdq_image
        {
            struct_size = (uint)sizeof(svdq_image),
            format = (uint)Format,
            width = checked((uint)width),
            height = checked((uint)height),
            row_stride = checked((ulong)RowStride),
            flags = Rows == RowOrder.BottomUp ? Api.SVDQ_IMAGE_BOTTOM_UP : 0,
            pixels = pixels,
            capacity = checked((ulong)capacity),
        };
    }

    /// <summary>A picture to start from.</summary>
    public sealed class InitImage
    {
        public byte[] Pixels;
        public int Width, Height;
        public ImageLayout Layout;
    }
}
