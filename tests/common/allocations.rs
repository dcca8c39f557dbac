//! Counts what this program allocates: in all, and by each thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, Ordering};

/// The system's allocator, counted.
pub struct Counting;

static LIVE: AtomicI64 = AtomicI64::new(0);

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// Bytes that are allocated now.
pub fn live() -> i64 {
    LIVE.load(Ordering::Relaxed)
}

/// How often `work` allocates on this thread.
pub fn during(work: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    work();
    COUNT.get() - before
}

fn count(size: i64) {
    LIVE.fetch_add(size, Ordering::Relaxed);
    // A thread that ends has no counter any more.
    let _ = COUNT.try_with(|count| count.set(count.get() + u64::from(size > 0)));
}

// SAFETY: every call is the system allocator's own, with the same arguments; counting allocates
// nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: as the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as i64);
        count(-(layout.size() as i64));
        // SAFETY: as the caller's.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: as the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}
