using System;
using System.Threading;
using Svdq;
using UnityEngine;

/// <summary>
/// Loads a model and shows what the prompt says on this object's material, without a hitch in between.
/// Put it on a cube.
/// </summary>
public sealed class GenerateTexture : MonoBehaviour
{
    [Tooltip("The folder of a FLUX.1 pipeline, in StreamingAssets or absolute")]
    public string modelFolder = "demo";
    public string prompt = "pixel art blue potion";
    public int seed = 42;

    readonly CancellationTokenSource destroyed = new CancellationTokenSource();
    Context context;

    async void Start()
    {
        try
        {
            context = new Context();
            var folder = System.IO.Path.Combine(Application.streamingAssetsPath, modelFolder);
            var loading = new Progress<JobStatus>(status => Debug.Log($"loading: {status.Fraction:P0}"));
            using (var model = await Model.LoadAsync(context, new ModelOptions(folder), loading, destroyed.Token))
            {
                var options = new GenerateOptions { Prompt = prompt, Seed = (ulong)seed };
                var texture = model.CreateTexture(options);
                var drawing = new Progress<JobStatus>(status => Debug.Log($"step {status.Step} of {status.Steps}"));
                await model.GenerateAsync(options, texture, drawing, destroyed.Token);
                destroyed.Token.ThrowIfCancellationRequested();
                GetComponent<Renderer>().material.mainTexture = texture;
            }
        }
        catch (OperationCanceledException)
        {
            // The object is gone.
        }
        catch (SvdqException exception)
        {
            Debug.LogError(exception.Message);
        }
    }

    void Update()
    {
        context?.PumpLog();
    }

    void OnDestroy()
    {
        destroyed.Cancel();
        context?.Dispose();
    }
}
