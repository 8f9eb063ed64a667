/* Counts a process's changes to its disk and stops it at one of them: loaded before libc by LD_PRELOAD, so that it sees
   what Python, pyarrow, torch and safetensors write alike. tests/attack/killer.py arms it in the child that it forks.

   A change is a call that makes, names, fills, syncs or removes a file under one of the armed folders; with `sockets`
   instead, a send of a request that changes a store (PUT, POST, DELETE). Of change number `target`, moment 0 is before
   the call, 1 inside it (half of the bytes are there; as 0 for calls that have none), 2 after it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { BEFORE, INSIDE, AFTER, ROOTS = 4, FDS = 4096 };

static volatile pid_t armed;
static char roots[ROOTS][PATH_MAX];
static atomic_long count;
static long target;
static int moment, signal_no, on_sockets, log_fd;
static _Atomic char writing[FDS]; /* the request under way on this socket changes the store */

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

/* `folders`: up to ROOTS paths, one a line. `log`: a descriptor for a line a change, or -1. */
void killer_arm(const char *folders, long change, int when, int number, int sockets, int log)
{
    int at = 0;
    for (const char *from = folders; *from && at < ROOTS; at++) {
        size_t length = strcspn(from, "\n");
        snprintf(roots[at], PATH_MAX, "%.*s", (int)length, from);
        from += length + (from[length] == '\n');
    }
    for (; at < ROOTS; at++) roots[at][0] = 0;
    atomic_store(&count, 0);
    target = change, moment = when, signal_no = number, on_sockets = sockets, log_fd = log;
    armed = getpid();
}

long killer_count(void) { return atomic_load(&count); }

void killer_disarm(void) { armed = 0; }

static int under(const char *path)
{
    for (int at = 0; at < ROOTS && roots[at][0]; at++) {
        size_t length = strlen(roots[at]);
        if (!strncmp(path, roots[at], length) && (path[length] == '/' || !path[length])) return 1;
    }
    return 0;
}

static int named(int fd, char *into)
{
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, into, PATH_MAX - 1);
    if (length <= 0) return 0;
    into[length] = 0;
    return 1;
}

/* The absolute path of a name that a call was given; 0 where it is none of ours. */
static int ours_at(int folder, const char *name, char *into)
{
    if (!armed || armed != getpid() || on_sockets || !name) return 0;
    if (name[0] == '/') {
        snprintf(into, PATH_MAX, "%s", name);
    } else {
        char base[PATH_MAX];
        if (folder == AT_FDCWD ? !getcwd(base, sizeof base) : !named(folder, base)) return 0;
        if (snprintf(into, PATH_MAX, "%s/%s", base, name) >= PATH_MAX) return 0;
    }
    return under(into);
}

static int ours(int fd, char *into)
{
    struct stat about;
    if (!armed || armed != getpid() || on_sockets) return 0;
    return !fstat(fd, &about) && !S_ISSOCK(about.st_mode) && !S_ISFIFO(about.st_mode) && named(fd, into) && under(into);
}

/* To this thread, which then gets no further: a signal to the process may be taken by another one. */
static void hit(void)
{
    syscall(SYS_tgkill, getpid(), (pid_t)syscall(SYS_gettid), signal_no);
}

static long enter(const char *what, const char *path, long size)
{
    int before = errno;
    long number = atomic_fetch_add(&count, 1);
    if (log_fd >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%ld %s %ld %s\n", number, what, size, path);
        syscall(SYS_write, log_fd, line, length);
    }
    if (number == target && (moment == BEFORE || (moment == INSIDE && size < 2))) hit();
    errno = before;
    return number;
}

static int inside(long number, long size) { return number == target && moment == INSIDE && size >= 2; }

static void leave(long number)
{
    int before = errno;
    if (number == target && moment == AFTER) hit();
    errno = before;
}

#define PATH_CALL(what, folder, path, call) \
    char where[PATH_MAX]; \
    if (!ours_at(folder, path, where)) return call; \
    long number = enter(what, where, 0); \
    __typeof__(call) result = call; \
    leave(number); \
    return result

#define FD_CALL(what, fd, call) \
    char where[PATH_MAX]; \
    if (!ours(fd, where)) return call; \
    long number = enter(what, where, 0); \
    __typeof__(call) result = call; \
    leave(number); \
    return result

int mkdir(const char *path, mode_t mode)
{
    REAL(int, "mkdir", const char *, mode_t);
    PATH_CALL("mkdir", AT_FDCWD, path, real(path, mode));
}

int mkdirat(int folder, const char *path, mode_t mode)
{
    REAL(int, "mkdirat", int, const char *, mode_t);
    PATH_CALL("mkdir", folder, path, real(folder, path, mode));
}

int rmdir(const char *path)
{
    REAL(int, "rmdir", const char *);
    PATH_CALL("rmdir", AT_FDCWD, path, real(path));
}

int unlink(const char *path)
{
    REAL(int, "unlink", const char *);
    PATH_CALL("unlink", AT_FDCWD, path, real(path));
}

int unlinkat(int folder, const char *path, int flags)
{
    REAL(int, "unlinkat", int, const char *, int);
    PATH_CALL("unlink", folder, path, real(folder, path, flags));
}

int rename(const char *from, const char *to)
{
    REAL(int, "rename", const char *, const char *);
    PATH_CALL("rename", AT_FDCWD, to, real(from, to));
}

int renameat(int a, const char *from, int b, const char *to)
{
    REAL(int, "renameat", int, const char *, int, const char *);
    PATH_CALL("rename", b, to, real(a, from, b, to));
}

int renameat2(int a, const char *from, int b, const char *to, unsigned flags)
{
    REAL(int, "renameat2", int, const char *, int, const char *, unsigned);
    PATH_CALL("rename", b, to, real(a, from, b, to, flags));
}

int link(const char *from, const char *to)
{
    REAL(int, "link", const char *, const char *);
    PATH_CALL("link", AT_FDCWD, to, real(from, to));
}

int linkat(int a, const char *from, int b, const char *to, int flags)
{
    REAL(int, "linkat", int, const char *, int, const char *, int);
    PATH_CALL("link", b, to, real(a, from, b, to, flags));
}

#define MAKES(flags) ((flags) & (O_CREAT | O_TRUNC))
#define MODE_OF(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list more; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }

#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        REAL(int, #name, const char *, int, ...); \
        MODE_OF(flags) \
        if (!MAKES(flags)) return real(path, flags, mode); \
        PATH_CALL("open", AT_FDCWD, path, real(path, flags, mode)); \
    }
#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) \
    { \
        REAL(int, #name, int, const char *, int, ...); \
        MODE_OF(flags) \
        if (!MAKES(flags)) return real(folder, path, flags, mode); \
        PATH_CALL("open", folder, path, real(folder, path, flags, mode)); \
    }
#define TRUNCATE(name, kind) \
    int name(int fd, kind length) \
    { \
        REAL(int, #name, int, kind); \
        FD_CALL("truncate", fd, real(fd, length)); \
    }
#define SYNC(name) \
    int name(int fd) \
    { \
        REAL(int, #name, int); \
        FD_CALL("sync", fd, real(fd)); \
    }
#define PWRITE(name, kind) \
    ssize_t name(int fd, const void *bytes, size_t length, kind offset) \
    { \
        char where[PATH_MAX]; \
        REAL(ssize_t, #name, int, const void *, size_t, kind); \
        if (!ours(fd, where)) return real(fd, bytes, length, offset); \
        long number = enter("write", where, (long)length); \
        if (inside(number, (long)length)) real(fd, bytes, length / 2, offset), hit(); \
        ssize_t result = real(fd, bytes, length, offset); \
        leave(number); \
        return result; \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)
SYNC(fsync)
SYNC(fdatasync)
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

/* Whether a send belongs to a request that changes the store; its head says which, and its body follows. */
static int request(int fd, const char *bytes, size_t length)
{
    if (!armed || armed != getpid() || !on_sockets || fd < 0 || fd >= FDS) return 0;
    static const char *const changing[] = {"PUT /", "POST /", "DELETE /"}, *const others[] = {"GET /", "HEAD /"};
    for (int at = 0; at < 3; at++)
        if (length > strlen(changing[at]) && !memcmp(bytes, changing[at], strlen(changing[at]))) return writing[fd] = 1;
    for (int at = 0; at < 2; at++)
        if (length > strlen(others[at]) && !memcmp(bytes, others[at], strlen(others[at]))) return writing[fd] = 0;
    return writing[fd];
}

/* The first line of a request, as the log's path. */
static void first_line(const char *bytes, size_t length, char *into)
{
    size_t at = 0;
    for (; at < length && at < PATH_MAX - 1 && bytes[at] >= ' '; at++) into[at] = bytes[at];
    into[at] = 0;
}

ssize_t write(int fd, const void *bytes, size_t length)
{
    char where[PATH_MAX];
    REAL(ssize_t, "write", int, const void *, size_t);
    if (!ours(fd, where)) return real(fd, bytes, length);
    long number = enter("write", where, (long)length);
    if (inside(number, (long)length)) real(fd, bytes, length / 2), hit();
    ssize_t result = real(fd, bytes, length);
    leave(number);
    return result;
}

ssize_t writev(int fd, const struct iovec *pieces, int pieces_n)
{
    char where[PATH_MAX];
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    if (!ours(fd, where)) return real(fd, pieces, pieces_n);
    size_t length = 0;
    for (int at = 0; at < pieces_n; at++) length += pieces[at].iov_len;
    long number = enter("write", where, (long)length);
    if (inside(number, (long)length)) {
        size_t left = length / 2;
        for (int at = 0; at < pieces_n && left; at++) {
            size_t some = pieces[at].iov_len < left ? pieces[at].iov_len : left;
            syscall(SYS_write, fd, pieces[at].iov_base, some);
            left -= some;
        }
        hit();
    }
    ssize_t result = real(fd, pieces, pieces_n);
    leave(number);
    return result;
}

static long bytes_of(int fd, size_t asked)
{
    struct stat about;
    return !fstat(fd, &about) && (size_t)about.st_size < asked ? (long)about.st_size : (long)asked;
}

#define SENDFILE(name, kind) \
    ssize_t name(int out, int in, kind *offset, size_t length) \
    { \
        char where[PATH_MAX]; \
        REAL(ssize_t, #name, int, int, kind *, size_t); \
        if (!ours(out, where)) return real(out, in, offset, length); \
        long size = bytes_of(in, length), number = enter("write", where, size); \
        if (inside(number, size)) real(out, in, offset, (size_t)size / 2), hit(); \
        ssize_t result = real(out, in, offset, length); \
        leave(number); \
        return result; \
    }

SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t length, unsigned flags)
{
    char where[PATH_MAX];
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    if (!ours(out, where)) return real(in, from, out, to, length, flags);
    long size = bytes_of(in, length), number = enter("write", where, size);
    if (inside(number, size)) real(in, from, out, to, (size_t)size / 2, flags), hit();
    ssize_t result = real(in, from, out, to, length, flags);
    leave(number);
    return result;
}

ssize_t send(int fd, const void *bytes, size_t length, int flags)
{
    char line[PATH_MAX];
    REAL(ssize_t, "send", int, const void *, size_t, int);
    if (!request(fd, bytes, length)) return real(fd, bytes, length, flags);
    first_line(bytes, length, line);
    long number = enter("send", line, (long)length);
    if (inside(number, (long)length)) real(fd, bytes, length / 2, flags), hit();
    ssize_t result = real(fd, bytes, length, flags);
    leave(number);
    return result;
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    char line[PATH_MAX];
    REAL(ssize_t, "sendmsg", int, const struct msghdr *, int);
    const struct iovec *first = message->msg_iov;
    if (!message->msg_iovlen || !request(fd, first->iov_base, first->iov_len)) return real(fd, message, flags);
    size_t length = 0;
    for (size_t at = 0; at < message->msg_iovlen; at++) length += message->msg_iov[at].iov_len;
    first_line(first->iov_base, first->iov_len, line);
    long number = enter("send", line, (long)length);
    if (inside(number, (long)length)) syscall(SYS_write, fd, first->iov_base, first->iov_len / 2), hit();
    ssize_t result = real(fd, message, flags);
    leave(number);
    return result;
}
