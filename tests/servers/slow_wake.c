// SPDX-License-Identifier: Apache-2.0
// Preloaded into tritonserver: a model's thread that has woken the loading thread goes on late, as on a busy machine.
// Payload::Execute() sets the promise of the loading thread; only then is the instance put back into the queue that an
// unload looks at. libstdc++ wakes with syscall(SYS_futex, ..., FUTEX_WAKE); a backend thread begins with SYS_gettid.
// gcc -shared -fPIC -o slow_wake.so slow_wake.c -ldl. If SLOW_WAKE_ONCE is set, only who makes that file is slow.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MODELS 3
static long (*real)(long, ...);
static __thread int is_backend_thread;
static int is_slow, threads;

__attribute__((constructor)) static void begin(void)
{
  const char* once = getenv("SLOW_WAKE_ONCE");
  if (!dlsym(RTLD_DEFAULT, "TRITONSERVER_ServerNew")) return;  // a shell or a stub
  is_slow = !once || open(once, O_CREAT | O_EXCL, 0600) >= 0;
}

static void wait_ms(long ms)
{
  struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
  nanosleep(&t, 0);
}

long syscall(long n, ...)
{
  va_list v;
  va_start(v, n);
  long a = va_arg(v, long), b = va_arg(v, long), c = va_arg(v, long), d = va_arg(v, long), e = va_arg(v, long);
  long f = va_arg(v, long);
  va_end(v);
  if (!real) real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
  long result = real(n, a, b, c, d, e, f);
  // the first to ask are the threads of the models; those of DCGM, which come later, must not be slow
  if (n == SYS_gettid && is_slow && __sync_add_and_fetch(&threads, 1) <= MODELS) {  // late, so that the loading thread surely sleeps and has to be woken
    is_backend_thread = 1;
    wait_ms(500);
  }
  if (n == SYS_futex && is_backend_thread && (b & 127) == FUTEX_WAKE) wait_ms(2500);
  return result;
}
