/* A disk that takes SLOW_DISK_MS to make anything durable: LD_PRELOAD of bench/rows_beside.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

static void wait_for_disk(void) {
    const char *text = getenv("SLOW_DISK_MS");
    long ms = text == NULL ? 0 : atol(text);
    struct timespec left = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&left, NULL);
}

#define SLOW(name)                                                    \
    int name(int fd) {                                                \
        int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, #name);     \
        wait_for_disk();                                              \
        return real(fd);                                              \
    }

SLOW(fsync)
SLOW(fdatasync)
SLOW(syncfs)
