/*
 * A TCP peer that accepts and acknowledges everything, made of two programs on one device.
 *
 * A machine cannot receive its own zero-copy data without copying it, so here nothing is received:
 * each segment is turned round as its own acknowledgement, and its payload is never touched.  What
 * was sent is counted by the sender's own tcpi_bytes_acked.
 *
 * `peer`, on the way out of the device, rewrites the headers and sends the segment back in, with a
 * length in its IP header that says "no payload".  It does not cut the payload off: the helper for
 * that, bpf_skb_change_tail, first copies all of it into linear memory.  The bridge that the device
 * is a port of cuts it off without reading it: it trims packets to their IP length.
 *
 * `fresh`, on the bridge, does nothing itself.  But before a program of its kind ("frags", generic)
 * the kernel rebuilds the packet, by now 54 bytes, in memory of its own.  So the segment with the
 * sender's pages is freed before it reaches the protocols, where its notification would say "copied".
 *
 * Needs tcp_timestamps=0 and tcp_sack=0, so that the headers of data are 40 bytes.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Data to this port is dropped: a peer that reads nothing and acknowledges nothing. */
#define STALLED_PORT 9999

#define IP_AT ETH_HLEN
#define TCP_AT (ETH_HLEN + sizeof(struct iphdr))
/* The device drops what it is given, and frees its pages untouched. */
#define SINK TC_ACT_OK

static __always_inline __u16 ip_checksum(const struct iphdr *ip)
{
    const __u16 *word = (const __u16 *)ip;
    __u32 sum = 0;
#pragma unroll
    for (int i = 0; i < (int)sizeof(*ip) / 2; i++)
        sum += word[i];
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (__u16)~sum;
}

SEC("tc")
int peer(struct __sk_buff *skb)
{
    struct iphdr ip;
    struct tcphdr tcp;

    if (skb->protocol != bpf_htons(ETH_P_IP) || bpf_skb_load_bytes(skb, IP_AT, &ip, sizeof(ip)) < 0)
        return SINK;
    if (ip.protocol != IPPROTO_TCP)
        return SINK;
    if (ip.ihl != 5 || bpf_skb_load_bytes(skb, TCP_AT, &tcp, sizeof(tcp)) < 0)
        return SINK;

    __u32 payload = bpf_ntohs(ip.tot_len);
    /* A segment of more than 64 KiB has no length in its header. */
    if (!payload)
        payload = skb->len - ETH_HLEN;
    payload -= sizeof(ip) + tcp.doff * 4;

    if (tcp.rst)
        return SINK;
    if (!tcp.syn) {
        if (tcp.dest == bpf_htons(STALLED_PORT) || (!payload && !tcp.fin))
            return SINK;
        ip.tot_len = bpf_htons(sizeof(ip) + sizeof(tcp));
        tcp.doff = 5;
    }

    __be32 address = ip.saddr;
    ip.saddr = ip.daddr;
    ip.daddr = address;
    ip.check = 0;
    ip.check = ip_checksum(&ip);

    __be16 port = tcp.source;
    tcp.source = tcp.dest;
    tcp.dest = port;
    __u32 acknowledged = bpf_ntohl(tcp.seq) + payload + tcp.fin + tcp.syn;
    tcp.seq = tcp.syn ? bpf_htonl(1) : tcp.ack_seq;
    tcp.ack_seq = bpf_htonl(acknowledged);
    tcp.ack = 1;
    tcp.psh = 0;
    tcp.fin = 0;
    tcp.window = bpf_htons(65535);
    /* The checksum stays: that of a local packet is completed only on the wire, and taken as right. */
    if (bpf_skb_store_bytes(skb, IP_AT, &ip, sizeof(ip), 0) < 0 ||
        bpf_skb_store_bytes(skb, TCP_AT, &tcp, sizeof(tcp), 0) < 0)
        return SINK;
    return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

SEC("xdp.frags")
int fresh(struct xdp_md *packet)
{
    (void)packet;
    return XDP_PASS;
}

char _license[] SEC("license") = "Dual MIT/GPL";
