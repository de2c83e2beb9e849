/* Preloaded, it tells of all variables of the environment that libsvdq asks for, and of SVDQ_QUESTION. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

extern char **environ;

char *getenv(const char *name) {
    const size_t length = strlen(name);
    Dl_info caller = {NULL, NULL, NULL, NULL};
    dladdr(__builtin_return_address(0), &caller);
    if ((caller.dli_fname && strstr(caller.dli_fname, "libsvdq")) || strcmp(name, "SVDQ_QUESTION") == 0)
        fprintf(stderr, "asked for %s\n", name);
    for (char **entry = environ; entry && *entry; entry++)
        if (strncmp(*entry, name, length) == 0 && (*entry)[length] == '=')
            return *entry + length + 1;
    return NULL;
}
