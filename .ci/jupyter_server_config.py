"""JupyterLab opens a notebook, adds what it knows of the kernel, and calls that a change. Here it finds these
words in what it reads, and nbdev leaves them out of what is written: `make lab` copies this file."""
from ipykernel.ipkernel import IPythonKernel
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpecManager
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from nbdev.clean import clean_jupyter


def of_kernel(metadata):
    "The metadata of a notebook as they are once its kernel runs; those of another kernel stay."
    spec = metadata.get("kernelspec", {})
    if spec.get("name", NATIVE_KERNEL_NAME) != NATIVE_KERNEL_NAME: return metadata
    here = KernelSpecManager().get_kernel_spec(NATIVE_KERNEL_NAME)
    spec = {"display_name": here.display_name, "language": here.language, "name": NATIVE_KERNEL_NAME}
    return {**metadata, "kernelspec": spec, "language_info": IPythonKernel.language_info}


class Book(AsyncLargeFileManager):
    "Files on disk; notebooks with the words of the kernel that will run them."

    async def get(self, path, content=True, *args, **kwargs):
        model = await super().get(path, content, *args, **kwargs)
        if content and model["type"] == "notebook":
            model["content"]["metadata"] = of_kernel(model["content"]["metadata"])
        return model


c = get_config()  # noqa: F821  Jupyter gives it
c.ServerApp.contents_manager_class = Book
c.FileContentsManager.pre_save_hook = clean_jupyter
