// SPDX-License-Identifier: Apache-2.0
// Preloaded into tritonserver and its stubs: the first stub that STOPPED_STUB names is stopped for four seconds where it
// is about to take a message, as on a machine that stood still. Triton gives it up after one and frees that message.
// A stub waits for a message with sem_timedwait (boost's interprocess_semaphore); who makes the file STOPPED_ONCE is
// stopped, nobody after it. gcc -shared -fPIC -o stopped_stub.so stopped_stub.c -ldl
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SECONDS 4
static int is_named;

__attribute__((constructor)) static void begin(void)
{
  char words[4096] = "";
  int file = open("/proc/self/cmdline", O_RDONLY);
  ssize_t length = read(file, words, sizeof words - 1);
  close(file);
  const char* instance = getenv("STOPPED_STUB");
  is_named = instance && length > 0 && memmem(words, length, instance, strlen(instance)) != 0;
}

static void stop(void)
{
  pid_t stub = getpid();
  if (open(getenv("STOPPED_ONCE"), O_CREAT | O_EXCL, 0600) < 0) return;
  if (fork() == 0) {
    struct timespec seconds = {SECONDS, 0};
    nanosleep(&seconds, 0);
    kill(stub, SIGCONT);
    _exit(0);
  }
  raise(SIGSTOP);
}

int sem_timedwait(sem_t* semaphore, const struct timespec* until)
{
  static int (*real)(sem_t*, const struct timespec*);
  static volatile int has_said_that_it_is_there;
  struct timespec moment = {0, 100 * 1000000L};
  if (!real) real = (int (*)(sem_t*, const struct timespec*))dlsym(RTLD_NEXT, "sem_timedwait");
  if (is_named && gettid() == getpid()) {  // the thread that takes messages; another one says that the stub is there
    do nanosleep(&moment, 0);
    while (!has_said_that_it_is_there);
    stop();
  }
  int result = real(semaphore, until);
  has_said_that_it_is_there = 1;
  return result;
}
