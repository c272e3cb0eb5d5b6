/* Inject disk errors and clock changes into one process; loaded before the C library (ld.so(8), LD_PRELOAD).

   The harness writes the current faults to a small file, which this library maps, so they can change while the process
   runs. Only files below TORTURE_FOLDER are affected. If TORTURE_SYNCED is set, every synced file is copied there. The
   copy is the content that a disk guarantees after a power cut. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile struct {
    int32_t writes, syncs; /* how many of a thousand fail */
    int32_t error;         /* with this errno */
    int32_t hours;         /* offset of the wall clock */
} *fault;
static const char *folder, *synced;
static pthread_mutex_t copying = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("TORTURE_FAULT");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *map = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *fault, PROT_READ, MAP_SHARED, fd, 0);
    if (fd >= 0)
        close(fd);
    fault = map == MAP_FAILED ? NULL : map;
    folder = getenv("TORTURE_FOLDER");
    synced = getenv("TORTURE_SYNCED");
}

/* Return the path of the open file `fd` if it is below the folder, else NULL. */
static const char *ours(int fd, char path[PATH_MAX])
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0 || !folder)
        return NULL;
    path[length] = 0;
    return strncmp(path, folder, strlen(folder)) ? NULL : path;
}

static int fails(int fd, int of_a_thousand)
{
    char path[PATH_MAX];
    if (!fault || !of_a_thousand || random() % 1000 >= of_a_thousand || !ours(fd, path))
        return 0;
    errno = fault->error;
    return 1;
}

ssize_t write(int fd, const void *bytes, size_t count)
{
    return fails(fd, fault ? fault->writes : 0) ? -1 : REAL(write)(fd, bytes, count);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset)
{
    return fails(fd, fault ? fault->writes : 0) ? -1 : REAL(pwrite64)(fd, bytes, count, offset);
}

/* Copy the current content of the open file `fd` to the folder of synced files. */
static void keep(int fd)
{
    char path[PATH_MAX], target[PATH_MAX + 64], bytes[1 << 16];
    if (!synced || !ours(fd, path))
        return;
    snprintf(target, sizeof target, "%s/%s", synced, strrchr(path, '/') + 1);
    pthread_mutex_lock(&copying);
    int copy = open(target, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    off64_t at = 0;
    ssize_t count;
    while (copy >= 0 && (count = pread64(fd, bytes, sizeof bytes, at)) > 0)
        at += REAL(pwrite64)(copy, bytes, count, at);
    if (copy >= 0 && ftruncate64(copy, at) == 0)
        close(copy);
    pthread_mutex_unlock(&copying);
}

int fdatasync(int fd)
{
    if (fails(fd, fault ? fault->syncs : 0))
        return -1;
    int status = REAL(fdatasync)(fd);
    if (status == 0)
        keep(fd);
    return status;
}

int fsync(int fd)
{
    if (fails(fd, fault ? fault->syncs : 0))
        return -1;
    int status = REAL(fsync)(fd);
    if (status == 0)
        keep(fd);
    return status;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int status = REAL(clock_gettime)(clock, now);
    if (fault && clock == CLOCK_REALTIME)
        now->tv_sec += fault->hours * 3600;
    return status;
}
