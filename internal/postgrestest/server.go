// Package postgrestest starts a PostgreSQL server for tests: from the programs that are installed, in a folder of its own, on
// loopback, with nothing of a server that the system may run.
package postgrestest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/naru-platform/naru/internal/porttest"
)

// Owner is the superuser of each server; its password is [Password].
const (
	Owner    = "owner"
	Password = "a password of the tests"
)

// Server is one that this process started. It ends when the process does, however that ends.
type Server struct {
	bin, dir string
	port     int
	who      *syscall.Credential // who it runs as; nil for who runs the tests
	other    bool                // it runs as another user in a namespace of its own, since there is none to be had here

	mu     sync.Mutex
	cmd    *exec.Cmd
	ended  chan struct{}
	output syncBuffer
}

// Bin is where the newest installed server's programs are.
func Bin() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	version := func(file string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(file)))) // a name that is no number comes first
		return n
	}
	slices.SortFunc(found, func(a, b string) int { return version(a) - version(b) })
	if len(found) > 0 {
		return filepath.Dir(found[len(found)-1]), nil
	}
	if p, err := exec.LookPath("initdb"); err == nil {
		if p, err = filepath.EvalSymlinks(p); err == nil {
			return filepath.Dir(p), nil
		}
	}
	return "", errors.New("no PostgreSQL server is installed: tools/needs.sh gets it, as does apt-get install postgresql")
}

// New makes a server's files below dir, and does not start it yet. Settings are lines of its configuration, such as
// `fsync = off`; it listens on a port of its own, and takes only who has a password.
func New(dir string, settings ...string) (*Server, error) {
	bin, err := Bin()
	if err != nil {
		return nil, err
	}
	s := &Server{bin: bin, dir: filepath.Join(dir, "postgresql")}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return nil, err
	}
	if s.other = os.Geteuid() == 0 && rootAlone(); os.Geteuid() == 0 && !s.other { // PostgreSQL does not run as root
		if s.who, err = nobody(); err != nil {
			return nil, err
		}
		if err := os.Chown(s.dir, int(s.who.Uid), int(s.who.Gid)); err != nil {
			return nil, err
		}
		// It has to come there, and folders of tests are for their owner alone.
		for d := filepath.Dir(s.dir); strings.HasPrefix(d, filepath.Clean(os.TempDir())+"/"); d = filepath.Dir(d) {
			i, err := os.Stat(d)
			if err != nil {
				return nil, err
			}
			if err := os.Chmod(d, i.Mode().Perm()|0o011); err != nil {
				return nil, err
			}
		}
	}
	secret := filepath.Join(s.dir, "password")
	if err := os.WriteFile(secret, []byte(Password+"\n"), 0o644); err != nil {
		return nil, err
	}
	cmd := s.command("initdb", "--pgdata="+s.data(), "--username="+Owner, "--pwfile="+secret, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return s, s.configure(append([]string{"listen_addresses = '127.0.0.1'", "unix_socket_directories = ''", "logging_collector = off", "shared_buffers = 128MB", "max_connections = 60"}, settings...)...)
}

// configure adds lines to the configuration, and a port of its own.
func (s *Server) configure(lines ...string) error {
	addr, err := porttest.Free()
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if s.port, err = strconv.Atoi(port); err != nil {
		return err
	}
	conf, err := os.OpenFile(filepath.Join(s.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = conf.WriteString("\n" + strings.Join(append(lines, "port = "+strconv.Itoa(s.port)), "\n") + "\n")
	return errors.Join(err, conf.Close())
}

// Standby makes the files of a server that follows s, which must run; it is not started yet.
func (s *Server) Standby() (*Server, error) {
	t := &Server{bin: s.bin, dir: s.dir + ".standby", who: s.who, other: s.other}
	if err := os.Mkdir(t.dir, 0o700); err != nil {
		return nil, err
	}
	if s.who != nil {
		if err := os.Chown(t.dir, int(s.who.Uid), int(s.who.Gid)); err != nil {
			return nil, err
		}
	}
	cmd := t.command("pg_basebackup", "--pgdata="+t.data(), "--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--dbname="+s.URL(Owner, "postgres"))
	cmd.Env = append(cmd.Env, "PGPASSWORD="+Password)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("pg_basebackup: %w\n%s", err, out)
	}
	return t, t.configure()
}

// rootAlone says that root is the only user there is, as in the namespace of a test that was run again to mount something.
func rootAlone() bool {
	raw, err := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(raw))
	return err == nil && len(f) == 3 && f[2] == "1"
}

func nobody() (*syscall.Credential, error) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil && uid != 0 {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is no user postgres or nobody")
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + s.bin + ":/usr/bin:/bin", "LC_ALL=C.UTF-8", "HOME=" + s.dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.who}
	if s.other {
		const any = 1000
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: any, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: any, Size: 1}}
	}
	return cmd
}

// Start starts it, and returns once it answers.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil {
		return errors.New("it runs already")
	}
	cmd, ended, begun := s.command("postgres", "-D", s.data()), make(chan struct{}), make(chan error, 1)
	cmd.Stdout, cmd.Stderr = &s.output, &s.output
	cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT
	go func() {
		// The signal comes when the thread ends that started it, so this one is kept.
		runtime.LockOSThread()
		err := cmd.Start()
		begun <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in its output
		}
		close(ended)
	}()
	if err := <-begun; err != nil {
		return err
	}
	s.cmd, s.ended = cmd, ended
	for {
		if s.command("pg_isready", "--host=127.0.0.1", "--port="+strconv.Itoa(s.port), "--quiet").Run() == nil {
			return nil
		}
		select {
		case <-ended:
			s.cmd = nil
			return fmt.Errorf("the server ended:\n%s", s.output.String())
		case <-ctx.Done():
			return fmt.Errorf("the server does not answer: %w\n%s", ctx.Err(), s.output.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Kill ends it as a power cut to it would. Nothing happens where it does not run.
func (s *Server) Kill() { s.end(syscall.SIGKILL) }

// Stop shuts it down; sessions are ended.
func (s *Server) Stop() { s.end(syscall.SIGINT) }

func (s *Server) end(by os.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(by) // it may have ended by itself
	<-s.ended
	s.cmd = nil
}

// Output is what it said so far.
func (s *Server) Output() string { return s.output.String() }

// Data is the folder with its files.
func (s *Server) Data() string { return s.data() }

// Address is where it listens.
func (s *Server) Address() string { return "127.0.0.1:" + strconv.Itoa(s.port) }

// URL is a database's, for a user, without a password.
func (s *Server) URL(user, database string) string {
	return "postgres://" + user + "@" + s.Address() + "/" + database
}

// SQL does statements as the superuser, each by itself, in a database, and gives what they say, without frills.
func (s *Server) SQL(database string, statements ...string) (string, error) {
	args := []string{"--no-psqlrc", "--tuples-only", "--no-align", "--quiet", "--set=ON_ERROR_STOP=1", "--dbname=" + s.URL(Owner, database)}
	for _, statement := range statements {
		args = append(args, "--command="+statement)
	}
	cmd := s.command("psql", args...)
	cmd.Env = append(cmd.Env, "PGPASSWORD="+Password)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("psql: %w: %s", err, errs.String())
	}
	return strings.TrimRight(string(out), "\n"), nil
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write takes what the server says.
func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String gives what it said.
func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
