// Keeps the CPU object loadable where torch itself is: on glibc 2.28 and the libstdc++ of that
// time. A newer compiler refers to a few symbols that came later; the definitions here, which
// cmake/exports.map keeps inside the object, take their place.

#if __has_include(<bits/c++config.h>)
#include <new>
#include <sstream>

// shared_ptr asks this variable of glibc 2.32 whether the process has one thread. "No" is always a
// correct answer.
extern "C" {
extern __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;
}

namespace std {

// libstdc++ of GCC 11.
#if _GLIBCXX_RELEASE >= 11
void __throw_bad_array_new_length() { throw bad_array_new_length(); }
#endif

// Their default constructors are exported from libstdc++ of GCC 9 on.
template class basic_ostringstream<char>;
template class basic_stringstream<char>;

}  // namespace std
#endif
