package outbound

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
)

// guard keeps calls away from addresses that a URL may come to by mistake or malice: this machine, its neighbours, and
// what clouds tell there of themselves. It judges the address that is dialled, so a name that is resolved to another
// one at the second look deceives nobody.
type guard struct {
	allow []netip.Prefix
	of    string // whose configuration that is
}

// special are the networks that are no public place (IANA's registries of special-purpose addresses), and those in
// which an IPv4 address may hide.
var special = func() (list []netip.Prefix) {
	for _, s := range []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
		"192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
		"::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16",
		"fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
	} {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}()

// forbidden is an address that is not to be called.
type forbidden struct {
	at netip.Addr
	of string
}

// Error names the remedy.
func (f *forbidden) Error() string {
	return fmt.Sprintf("%s is no public address; if it is meant, put its network into `allow` of %s in the configuration file (`allow: [%s/%d]`) and start it anew", f.at, f.of, f.at, f.at.BitLen())
}

// control is called with each address before it is dialled.
func (g guard) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("address %q: %w", address, err)
	}
	return g.judge(at.Addr())
}

func (g guard) judge(at netip.Addr) error {
	at = at.WithZone("").Unmap()
	in := func(p netip.Prefix) bool { return p.Contains(at) }
	if slices.ContainsFunc(special, in) && !slices.ContainsFunc(g.allow, in) {
		return &forbidden{at, g.of}
	}
	return nil
}

// Networks reads a list such as 10.1.0.0/16 and 127.0.0.1.
func Networks(list []string) (all []netip.Prefix, err error) {
	for i, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			at, aerr := netip.ParseAddr(s)
			if aerr != nil {
				return nil, fmt.Errorf("[%d] %q: want a network such as 10.1.0.0/16, or an address", i, s)
			}
			p = netip.PrefixFrom(at, at.BitLen())
		}
		all = append(all, p.Masked())
	}
	return all, nil
}
