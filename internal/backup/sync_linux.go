package backup

import (
	"os"

	"golang.org/x/sys/unix"
)

// syncAll puts what is below dir on stable storage: files one by one or, when
// there are many, the whole file system at once, which has to wait for
// everybody else's, too.
func syncAll(dir string, files int) error {
	if files <= fewFiles {
		return syncEach(dir)
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// free is how many bytes an ordinary file in dir may still have.
func free(dir string) (int64, error) {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	return int64(st.Bavail) * st.Bsize, err
}
