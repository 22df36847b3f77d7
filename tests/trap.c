/* Counts what processes write below a folder, and at the nth time the disk is full, or power is lost.

   Preloaded into a command and all that it starts, which share one counter: a file that TRAP names, mapped as `trap`.
   Only calls that a file system answers are counted, and of those only what changes it; TRAP_BELOW is the folder. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, FULL, KILL_FIRST, KILL_ALL };

static struct { int count, at, mode, fired, first; char where[400]; } *trap;
static const char *below;

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv("TRAP");
    below = getenv("TRAP_BELOW");
    int fd = file && below ? open(file, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *found = mmap(NULL, sizeof *trap, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (found == MAP_FAILED) return;
    trap = found;
    __sync_bool_compare_and_swap(&trap->first, 0, getpid());
}

/* Whether the call must fail for want of room. `room`: it needs some. */
static int caught(const char *call, const char *path, int room) {
    size_t length = below ? strlen(below) : 0;
    if (!trap || !path || strncmp(path, below, length) || (path[length] && path[length] != '/')) return 0;
    int full = trap->mode == FULL;
    if (full && !room) return 0;
    int number = __sync_add_and_fetch(&trap->count, 1);
    if (trap->mode == COUNT || number < trap->at || (!full && number > trap->at)) return 0;
    if (__sync_bool_compare_and_swap(&trap->fired, 0, 1)) snprintf(trap->where, sizeof trap->where, "%s %s", call, path);
    if (full) { errno = ENOSPC; return 1; }
    kill(trap->first, SIGKILL);
    if (trap->mode == KILL_ALL) kill(getpid(), SIGKILL);
    return 0;
}

static const char *of_fd(int fd, char *path) {
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return NULL;
    path[length] = 0;
    return path;
}

static const char *of_path(int folder, const char *name, char *path) {
    char base[PATH_MAX];
    if (!name || name[0] == '/') return name;
    if (folder == AT_FDCWD ? !getcwd(base, sizeof base) : !of_fd(folder, base)) return NULL;
    snprintf(path, PATH_MAX, "%.2000s/%.2000s", base, name);
    return path;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name)) dlsym(RTLD_NEXT, #name)
#define BY_FD(type, name, arguments, values, fd, room) \
    type name arguments { \
        char path[PATH_MAX]; REAL(name); \
        return trap && caught(#name, of_fd(fd, path), room) ? -1 : real values; \
    }
#define BY_NAME(name, arguments, values, folder, file, room) \
    int name arguments { \
        char path[PATH_MAX]; REAL(name); \
        return trap && caught(#name, of_path(folder, file, path), room) ? -1 : real values; \
    }
#define OPENED(name, arguments, folder, values) \
    int name arguments { \
        char path[PATH_MAX]; REAL(name); mode_t mode = 0; \
        if (flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) { \
            va_list rest; va_start(rest, flags); mode = va_arg(rest, int); va_end(rest); \
            if (trap && faccessat(folder, file, F_OK, AT_SYMLINK_NOFOLLOW) && \
                caught(#name, of_path(folder, file, path), 1)) return -1; \
        } \
        return real values; \
    }

BY_FD(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size), fd, 1)
BY_FD(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), fd, 1)
BY_FD(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at), fd, 1)
BY_FD(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count), fd, 1)
BY_FD(ssize_t, sendfile, (int to, int from, off_t *at, size_t size), (to, from, at, size), to, 1)
BY_FD(ssize_t, sendfile64, (int to, int from, off64_t *at, size_t size), (to, from, at, size), to, 1)
BY_FD(ssize_t, copy_file_range, (int from, off64_t *at, int to, off64_t *place, size_t size, unsigned flags),
      (from, at, to, place, size, flags), to, 1)
BY_FD(int, ftruncate, (int fd, off_t size), (fd, size), fd, size > 0)
BY_FD(int, ftruncate64, (int fd, off64_t size), (fd, size), fd, size > 0)
BY_FD(int, fallocate, (int fd, int mode, off_t at, off_t size), (fd, mode, at, size), fd, 1)
BY_FD(int, fallocate64, (int fd, int mode, off64_t at, off64_t size), (fd, mode, at, size), fd, 1)
BY_NAME(mkdir, (const char *file, mode_t mode), (file, mode), AT_FDCWD, file, 1)
BY_NAME(mkdirat, (int folder, const char *file, mode_t mode), (folder, file, mode), folder, file, 1)
BY_NAME(symlink, (const char *to, const char *file), (to, file), AT_FDCWD, file, 1)
BY_NAME(link, (const char *from, const char *file), (from, file), AT_FDCWD, file, 0)
BY_NAME(linkat, (int one, const char *from, int two, const char *file, int flags), (one, from, two, file, flags), two,
        file, 0)
BY_NAME(rename, (const char *from, const char *file), (from, file), AT_FDCWD, file, 0)
BY_NAME(renameat, (int one, const char *from, int two, const char *file), (one, from, two, file), two, file, 0)
BY_NAME(unlink, (const char *file), (file), AT_FDCWD, file, 0)
BY_NAME(unlinkat, (int folder, const char *file, int flags), (folder, file, flags), folder, file, 0)
BY_NAME(rmdir, (const char *file), (file), AT_FDCWD, file, 0)
OPENED(open, (const char *file, int flags, ...), AT_FDCWD, (file, flags, mode))
OPENED(open64, (const char *file, int flags, ...), AT_FDCWD, (file, flags, mode))
OPENED(openat, (int folder, const char *file, int flags, ...), folder, (folder, file, flags, mode))
OPENED(openat64, (int folder, const char *file, int flags, ...), folder, (folder, file, flags, mode))
